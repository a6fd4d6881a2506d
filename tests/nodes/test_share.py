"""Normal tensors over inference tensors' storage, and shadows of plain torch networks."""

import dataclasses

import pytest
import torch
from torch import nn

FORMATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.uint8]


def inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_shared_tensor_is_normal_and_copies_nothing(host, dtype):
    original = inference((torch.rand(6, 4) * 100).to(dtype)).t()[1:, ::2]
    shared = host("backend.sharing.share_storage").share(original)
    assert original.is_inference()
    assert not shared.is_inference()
    assert shared.data_ptr() == original.data_ptr()
    assert (shared.shape, shared.stride(), shared.dtype) == (original.shape, original.stride(), dtype)
    assert torch.equal(shared.float(), original.float())


def test_autograd_runs_through_it(host):
    weight = inference(torch.rand(3, 4))
    x = torch.rand(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        torch.nn.functional.linear(x, weight).sum().backward()
    torch.nn.functional.linear(x, host("backend.sharing.share_storage").share(weight)).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand(2, 4))


@dataclasses.dataclass
class Params:
    scale: torch.Tensor
    orig_shape: tuple


class Packed:
    """Formed as the host's QuantizedTensor."""

    def __init__(self, data, layout, params):
        self._qdata, self._layout_cls, self._params = data, layout, params


def test_packed_tensors_are_rebuilt_from_shared_parts(host):
    packed = Packed(inference(torch.zeros(4, 4, dtype=torch.uint8)), "layout", Params(inference(torch.ones(1)), (4, 4)))
    share = host("backend.sharing.share_storage")
    shared = share.share(packed)
    assert share.storages(shared) == share.storages(packed)
    assert not shared._qdata.is_inference()
    assert not shared._params.scale.is_inference()
    assert shared._params.orig_shape == (4, 4)
    assert share.parts(packed) == [packed._qdata, packed._params.scale]


class Rounded(torch.Tensor):
    """A quantized weight of 8 rows."""


@pytest.mark.parametrize(
    ("scale", "more", "is_taken"),
    [
        (torch.tensor(0.5), {}, True),
        (torch.ones(8, 1), {"convrot": False}, True),
        (torch.ones(8, 1), {"convrot": True}, False),
        (torch.ones(8, 2), {}, False),
        (torch.ones(8, 1).to(torch.float8_e4m3fn), {}, False),
        (torch.ones(8, 1), {"zero": torch.ones(8)}, False),
    ],
)
def test_codes_are_taken_where_a_factor_a_row_makes_the_weight_of_them(host, scale, more, is_taken):
    fields = {"scale": scale, **more}
    packed = torch.zeros(8, 16).as_subclass(Rounded)
    packed._qdata = torch.zeros(8, 16, dtype=torch.int8)
    packed._params = dataclasses.make_dataclass("Params", fields)(**fields)
    codes_of = host("backend.sharing.share_storage").codes_of
    assert codes_of(packed) == ((packed._qdata, scale) if is_taken else None)
    assert codes_of(torch.zeros(8, 16)) is None


class Layer(nn.Linear):
    """A Linear with a host's runtime state."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight_function, self.bias_function, self.comfy_cast_weights = [], [], True
        self._v_signature, self._pin_state = object(), object()

    def forward(self, x):
        raise AssertionError("the host's own forward was called")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(8), Layer(8, 16), Layer(16, 8)
        self.conv, self.group, self.embed = nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Embedding(4, 8)
        self.register_buffer("table", torch.rand(8))

    def forward(self, x):
        x += self.second(torch.tanh(self.first(self.norm(x))))  # in place, as Flux's blocks
        x = self.group(self.conv(x.view(1, 2, 2, -1))).view(x.shape)
        return x * self.table + self.embed(torch.tensor([1]))


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = nn.Sequential(Block(), Block())
    with torch.inference_mode():
        for module in made.modules():
            for group in (module._parameters, module._buffers):
                for name, value in group.items():
                    group[name] = (
                        nn.Parameter(value.clone(), requires_grad=False)
                        if group is module._parameters
                        else value.clone()
                    )
    return made


def shadow_of(host, network):
    return host("backend.shadow").build_shadow(network, dict(network.state_dict()))


def test_every_byte_of_a_shadow_is_the_originals(host, network):
    storages = host("backend.sharing.share_storage").storages
    shadow = shadow_of(host, network)
    theirs = {a for t in network.state_dict().values() for a in storages(t)}
    mine = {a: size for t in shadow.state_dict().values() for a, size in storages(t).items()}
    assert mine.keys() == theirs
    assert not any(t.is_inference() for t in shadow.state_dict().values())


def test_nothing_of_the_hosts_runtime_is_in_it(host, network):
    for module in shadow_of(host, network).modules():
        assert not any(name.startswith(("_v_", "_pin", "comfy_")) for name in vars(module))
        assert not vars(module)["_forward_hooks"]


@pytest.mark.parametrize(("every", "in_ram"), [(0, False), (1, False), (1, True), (2, False)])
def test_gradients_through_in_place_blocks_are_exact(host, network, monkeypatch, every, in_ram):
    """Against the same arithmetic written out of place."""
    monkeypatch.setattr("lora_loom.trainer.weights.recompute.LEAST_IN_RAM", 0)

    def reference(x):
        for block in network:
            state = {name: t.clone() for name, t in block.state_dict().items()}
            hidden = torch.nn.functional.layer_norm(x, (8,), state["norm.weight"], state["norm.bias"])
            hidden = torch.tanh(hidden @ state["first.weight"].T + state["first.bias"])
            x = x + hidden @ state["second.weight"].T + state["second.bias"]
            y = torch.nn.functional.conv2d(x.view(1, 2, 2, -1), state["conv.weight"], state["conv.bias"], padding=1)
            y = torch.nn.functional.group_norm(y, 1, state["group.weight"], state["group.bias"])
            x = y.view(x.shape) * state["table"] + state["embed.weight"][1]
        return x

    shadow = shadow_of(host, network)
    if every:
        recompute = host("backend.checkpointing").checkpoint_blocks
        assert recompute(shadow, ["Block"], every=every, in_ram=in_ram) == 2 // every
    x = torch.randn(4, 8)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    made, expected = shadow(first * 1), reference(second)
    assert torch.allclose(made, expected, atol=1e-6)
    made.square().sum().backward()
    expected.square().sum().backward()
    assert (first.grad - second.grad).norm() / second.grad.norm() < 1e-5
