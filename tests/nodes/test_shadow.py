"""Every layer that a shadow replaces computes what the stored one does, whatever its dtype, and gives exact gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    """ComfyUI's: known by its name, since torch's own came later."""

    def __init__(self, width, weight=True, eps=1e-6):
        super().__init__()
        self.normalized_shape, self.eps = (width,), eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None
        self.register_parameter("bias", None)

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class Linear(nn.Module):
    """ComfyUI's for packed weights: not an nn.Linear, and without a bias unless the file has one."""

    def __init__(self, inner, outer):
        super().__init__()
        self.in_features, self.out_features = inner, outer
        self.weight = nn.Parameter(torch.zeros(outer, inner))

    def forward(self, x):
        return F.linear(x, self.weight)


LAYERS = {
    "Linear": (nn.Linear(6, 5), (3, 6)),
    "Linear without bias": (nn.Linear(6, 5, bias=False), (3, 6)),
    "Linear of the host": (Linear(6, 5), (3, 6)),
    "Conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 8)),
    "Conv3d": (nn.Conv3d(4, 6, 3, padding=(0, 1, 1), dilation=(1, 1, 1)), (2, 4, 5, 6, 6)),
    "Conv1d without bias": (nn.Conv1d(4, 6, 3, bias=False, padding="same"), (2, 4, 9)),
    "LayerNorm": (nn.LayerNorm(6, eps=1e-3), (3, 6)),
    "LayerNorm without weight": (nn.LayerNorm(6, elementwise_affine=False), (3, 6)),
    "RMSNorm": (RMSNorm(6, eps=1e-3), (3, 6)),
    "RMSNorm without weight": (RMSNorm(6, weight=False), (3, 6)),
    "GroupNorm": (nn.GroupNorm(2, 4, eps=1e-3), (2, 4, 5, 5)),
}


@pytest.fixture
def shadow_of(host):
    def build(network):
        return host("backend.shadow").build_shadow(network, dict(network.state_dict()))

    return build


def stored(layer, dtype):
    """A copy with numbers that tell its weights apart."""
    made = copy.deepcopy(layer)
    for number, parameter in enumerate(made.parameters()):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_computes_and_differentiates_in_the_inputs_dtype(shadow_of, layer, shape, dtype):
    """Against the same layer with its weights cast beforehand."""
    kept = stored(layer, dtype)
    shadow, reference = shadow_of(nn.Sequential(kept))[0], copy.deepcopy(kept).float()
    mine, theirs = (torch.randn(shape, generator=torch.Generator().manual_seed(9)).requires_grad_() for _ in range(2))
    made, expected = shadow(mine), reference(theirs)
    assert made.dtype == torch.float32
    assert torch.allclose(made, expected, atol=1e-5)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(10))
    (made * pull).sum().backward()
    (expected * pull).sum().backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-5)
    assert type(shadow) is not type(kept)
    assert {p.dtype for p in shadow.parameters()} <= {dtype}, "nothing is cast for good"


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), RMSNorm(6)], ids=["LayerNorm", "RMSNorm"])
def test_a_norm_is_not_reached_by_what_is_added_in_place_behind_it(shadow_of, layer):
    shadow, reference = shadow_of(stored(layer, torch.float32)), stored(layer, torch.float32)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    stream = first * 1
    stream += shadow(stream)
    other = second * 1
    other = other + reference(other)
    stream.square().sum().backward()
    other.square().sum().backward()
    assert torch.allclose(first.grad, second.grad, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), RMSNorm(6)], ids=["LayerNorm", "RMSNorm"])
def test_a_norm_copies_nothing_without_gradients(shadow_of, layer, monkeypatch):
    shadow = shadow_of(stored(layer, torch.float32))
    monkeypatch.setattr(torch.Tensor, "clone", lambda *a, **k: pytest.fail("copied"))
    with torch.no_grad():
        shadow(torch.ones(2, 6, requires_grad=True))
    shadow(torch.ones(2, 6))


class CausalConv3d(nn.Conv3d):
    """ComfyUI's: with autopad a clip that is shorter than the kernel meets its last slices only."""

    def forward(self, x, autopad=None):
        raise AssertionError("the host's own forward was called")


def test_a_short_clip_meets_the_kernels_last_slices(shadow_of):
    layer = stored(CausalConv3d(2, 3, (3, 1, 1)), torch.bfloat16)
    shadow = shadow_of(layer)
    for frames in (1, 2, 3, 4):
        clip = torch.randn(1, 2, frames, 4, 4, generator=torch.Generator().manual_seed(frames))
        padded = torch.cat([torch.zeros(1, 2, max(0, 3 - frames), 4, 4), clip], dim=2)
        expected = F.conv3d(padded, layer.weight.float(), layer.bias.float())
        assert torch.allclose(shadow(clip, autopad="causal_zero"), expected, atol=1e-5)
    assert torch.allclose(shadow(clip), expected, atol=1e-5)


def test_an_embedding_gives_the_dtype_that_is_asked_for(shadow_of):
    layer = stored(nn.Embedding(5, 4, padding_idx=0), torch.bfloat16)
    shadow, tokens = shadow_of(layer), torch.tensor([[1, 4, 0]])
    assert shadow(tokens).dtype == torch.bfloat16
    assert torch.equal(shadow(tokens), layer.weight[tokens])
    wide = shadow(tokens, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, layer.weight[tokens].float())


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5, 2.0, 1.0, 4.0, 3.0]).reshape(5, 1)])
def test_a_scaled_fp8_weight_is_used_times_its_factor(shadow_of, scale):
    layer = stored(nn.Linear(6, 5), torch.float32)
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.scale_weight, layer.scale_input = nn.Parameter(scale, requires_grad=False), nn.Parameter(torch.ones(()))
    shadow, x = shadow_of(layer), torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(shadow(x), F.linear(x, layer.weight.float() * scale, layer.bias), atol=1e-5)
    assert {name for name, _ in shadow.named_parameters()} == {"weight", "bias"}


def test_a_factor_of_one_is_left_out(shadow_of):
    layer = stored(nn.Linear(6, 5), torch.float32)
    layer.scale_weight = nn.Parameter(torch.ones(1), requires_grad=False)
    assert shadow_of(layer).scale is None


class Guarded(nn.Module):
    """A layer with everything a host hangs on one at run time; its forward goes to the host's own casting."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0, dtype=torch.bfloat16))
        self.weight_function, self.bias_function = [lambda w: pytest.fail("a patch was applied")], [lambda b: b]
        self.comfy_cast_weights, self.weight_comfy_model_dtype, self._pin = True, torch.float16, object()
        self._v_signature, self.bias_lowvram_function, self.factory_kwargs = object(), object(), {}
        self.table = torch.ones(4)
        self.kept = "as it is"

    def forward(self, x):
        assert self.bias is None
        for function in [*self.weight_function, *self.bias_function]:
            function(x)
        return x * self.scale.to(x) * self.table


def test_a_module_of_the_hosts_runs_without_its_patches(shadow_of):
    with torch.inference_mode():
        network = Guarded()
    shadow = shadow_of(network)
    assert (shadow.weight_function, shadow.bias_function) == ([], [])
    x = torch.ones(2, 4, requires_grad=True)
    shadow(x).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 4), 2.0))
    for name in ("comfy_cast_weights", "weight_comfy_model_dtype", "_pin", "_v_signature", "bias_lowvram_function",
                 "factory_kwargs"):  # fmt: skip
        assert name not in vars(shadow)
    assert shadow.kept == "as it is"
    assert len(network.weight_function) == 1, "the host's module is left alone"


def test_a_module_without_the_hosts_casting_gets_none_of_it(shadow_of):
    shadow = shadow_of(nn.Sequential(nn.LayerNorm(4), nn.SiLU()))
    assert not any("weight_function" in vars(module) for module in shadow.modules())
    assert not dict(shadow[1].named_parameters())
    assert "bias" not in shadow[1]._parameters


def test_hooks_stay_with_the_hosts_module(shadow_of):
    """Forward and backward hooks of the original neither run nor are shared; a new one works on the shadow alone."""
    network, called = nn.Sequential(stored(nn.Linear(4, 4), torch.float32), nn.SiLU()), []
    for module in network.modules():
        module.register_forward_hook(lambda *a: called.append("forward"))
        module.register_forward_pre_hook(lambda *a: called.append("before"))
        module.register_full_backward_hook(lambda *a: called.append("backward"))
    shadow = shadow_of(network)
    shadow(torch.ones(1, 4, requires_grad=True)).sum().backward()
    assert called == []
    shadow[1].register_forward_hook(lambda *a: called.append("mine"))
    shadow(torch.ones(1, 4))
    assert called == ["mine"]
    network(torch.ones(1, 4))
    assert "mine" not in called[1:]


def test_a_forward_that_was_put_on_the_object_is_not_taken_over(shadow_of):
    network = nn.Sequential(nn.SiLU())
    network[0].forward = lambda x: pytest.fail("the patched forward was called")
    assert torch.equal(shadow_of(network)(torch.zeros(1)), torch.zeros(1))


def test_unpatched_weights_are_used_where_they_are_given(host):
    """A LoRA node in front has changed the weight in place and keeps the original elsewhere."""
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    original = torch.eye(4)
    shadow = host("backend.shadow").build_shadow(network, {"0.weight": original})
    assert shadow[0].weight.data_ptr() == original.data_ptr()
    x = torch.rand(2, 4)
    assert torch.equal(shadow(x), x)


def test_a_shadow_is_frozen_and_evaluates(shadow_of):
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train()
    shadow = shadow_of(network)
    assert not any(parameter.requires_grad for parameter in shadow.parameters())
    assert not any(module.training for module in shadow.modules())
    assert network.training


def test_a_shadow_has_the_keys_of_the_original(shadow_of):
    """A buffer that is not saved stays one, so that keys of files mean the same in both."""
    network = nn.Sequential(nn.BatchNorm2d(2))
    network.register_buffer("passing", torch.ones(2), persistent=False)
    shadow = shadow_of(network)
    assert shadow.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(shadow.passing, network.passing)


@pytest.mark.parametrize("names", [("_params",), ("_qdata",), ()])
def test_only_a_tensor_of_both_parts_is_packed(host, names):
    part = type("Part", (), dict.fromkeys(names, 1))()
    assert not host("backend.sharing.share_storage").is_quantized(part)


def test_a_trained_parameter_is_shared_without_its_history(host):
    weight = nn.Parameter(torch.rand(3))
    shared = host("backend.sharing.share_storage").share(weight)
    assert not shared.requires_grad
    assert shared.data_ptr() == weight.data_ptr()


def test_parts_of_a_tensor_subclass_are_its_inner_tensors(host):
    """By torch's own protocol, as quanto's packed weights have it; a plain tensor is its own part."""
    first, second = torch.rand(3), torch.rand(2)

    class Inner:
        low, high = first, second

        def __tensor_flatten__(self):
            return ["low", "high"], None

    class Outer:
        inner, scale = Inner(), second

        def __tensor_flatten__(self):
            return ["inner", "scale"], None

    parts = host("backend.sharing.share_storage").parts
    assert [part.data_ptr() for part in parts(Outer())] == [t.data_ptr() for t in (first, second, second)]
    assert parts(first)[0] is first
