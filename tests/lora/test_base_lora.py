"""Base LoRAs: a network that computes with one has the outputs and gradients of a network with the LoRA merged."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.lora.adapted import dense_weight
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.base_lora import BaseLora, BaseLoraIdentity, OfRows, change_of, lay_base_loras
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.row_parts import split
from lora_loom.trainer.weights.streaming import StreamSettings, stream_base, stream_of

PARTS = {"to_q": (0, 6), "to_k": (6, 10)}
SHAPES = {"first": (10, 8), "conv": (6, 4, 3, 3), "blocks.0.a": (10, 10), "blocks.1.b": (10, 10)}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x):
        return x + self.b(torch.tanh(self.a(x)))


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.first, self.conv = FrozenLinear(8, 10), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        source = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=source) * 0.3
        self.requires_grad_(False)
        self.recompute = False

    def forward(self, x, image):
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x.square().sum() + self.conv(image).square().mean()


def inputs():
    source = torch.Generator().manual_seed(5)
    return torch.randn(3, 8, generator=source), torch.randn(2, 4, 5, 5, generator=source)


def factors(kind, shape, seed=3):
    """The tensors of a LoRA of a module, with every factor that its kind has."""
    source = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=source) * 0.4

    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    alpha = {"alpha": torch.tensor(3.0)}
    if kind == "lora":
        down = draw(2, *shape[1:])
        return {"lora_A.weight": down, "lora_B.weight": draw(rows, 2, *[1] * (len(shape) - 2)), **alpha}
    if kind == "loha":
        return {"hada_w1_a": draw(rows, 2), "hada_w1_b": draw(2, columns), "hada_w2_a": draw(rows, 2),
                "hada_w2_b": draw(2, columns), **alpha}  # fmt: skip
    return {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(rows // 2, 1), "lokr_w2_b": draw(1, columns // 2), **alpha}


def base_lora(net, kind="lora", paths=tuple(SHAPES), strength=0.7, use="always"):
    changes = {
        path: [change_of(factors(kind, SHAPES[path]), net.get_submodule(path), strength, path)] for path in paths
    }
    return BaseLora(
        identity=BaseLoraIdentity(file="d.safetensors", digest="d", strength=strength, use=use), changes=changes
    )


def merged(net, *loras):
    made = copy.deepcopy(net)
    for lora in loras:
        for path, changes in lora.changes.items():
            for change in changes:
                weight = made.get_submodule(path).weight
                weight.data = weight.data + change.dense()
    return made


def gradients(net, paths, network=None, after=lambda net: None):
    """Loss and gradients of an adapter on the network, and of the network's input."""
    adapter = inject(net, list(paths), network or NetworkConfig(rank=2), seed=1)
    for parameter in adapter.parameters().values():
        source = torch.Generator().manual_seed(parameter.numel())
        parameter.data += torch.randn(parameter.shape, generator=source) * 0.2
    x, image = (value.requires_grad_() for value in inputs())
    loss = net(x, image)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in adapter.parameters().items()} | {
        "x": x.grad,
        "image": image.grad,
    }


def assert_same(mine, expected):
    assert mine[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    for name, gradient in expected[1].items():
        error = (mine[1][name] - gradient).norm() / gradient.norm()
        assert gradient.norm() > 0, name
        assert error < 1e-5, (name, error)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("trained", ["lora", "dora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_a_base_with_the_lora_merged(kind, trained, recompute):
    net = Net()
    net.recompute = recompute
    lora, network = base_lora(net, kind), NetworkConfig(rank=2, kind=trained)
    whole = merged(net, lora)
    before = copy.deepcopy(net.state_dict())
    lay_base_loras(net, [lora])
    assert_same(gradients(net, SHAPES, network), gradients(whole, SHAPES, network))
    now = {name.replace("base_layer.", ""): tensor for name, tensor in net.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items()), "no base weight is touched"


def test_several_base_loras_add_up():
    net = Net()
    loras = [base_lora(net), base_lora(net, "lokr", ["first", "blocks.0.a"], strength=-0.4)]
    whole = merged(net, *loras)
    lay_base_loras(net, loras)
    assert_same(gradients(net, ["blocks.1.b"]), gradients(whole, ["blocks.1.b"]))


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("trained", ["lora", "dora"])
@pytest.mark.parametrize("target", [["first.to_q", "first.to_k"], ["first.to_k"], ["blocks.0.a"]], ids=str)
def test_a_fused_layer_passes_a_change_on_to_its_parts(kind, trained, target):
    """A base LoRA names the whole matrix, or rows of it that need not be those of the parts; the adapter is on the parts."""
    net = Net()
    split(net.first, PARTS)
    lora = base_lora(net, kind)
    some = OfRows(inner=change_of(factors(kind, (4, 8), 9), net.first, 0.6, "rows", rows=4), offset=4, shape=(10, 8))
    lora = BaseLora(identity=lora.identity, changes={**lora.changes, "first": [*lora.changes["first"], some]})
    whole = merged(Net(), lora)
    split(whole.first, PARTS)
    lay_base_loras(net, [lora])
    network = NetworkConfig(rank=2, kind=trained)
    assert_same(gradients(net, target, network), gradients(whole, target, network))


def test_a_layer_that_is_not_split_takes_a_change_of_some_rows():
    net = Net()
    some = OfRows(inner=change_of(factors("lora", (4, 8)), net.first, 0.6, "rows", rows=4), offset=5, shape=(10, 8))
    lora = BaseLora(identity=base_lora(net).identity, changes={"first": [some]})
    whole = merged(net, lora)
    lay_base_loras(net, [lora])
    assert_same(gradients(net, ["first"]), gradients(whole, ["first"]))


@pytest.mark.parametrize("trained", ["lora", "dora"])
def test_a_streamed_base_computes_with_base_loras_too(trained):
    net = Net()
    lora, network = base_lora(net), NetworkConfig(rank=2, kind=trained)
    whole = merged(net, lora)
    stream_base(net, StreamSettings(budget=None), torch.device("cpu"), None, torch.float32)
    assert stream_of(net).blocks, "nothing is streamed"
    lay_base_loras(net, [lora])
    assert_same(gradients(net, SHAPES, network), gradients(whole, SHAPES, network))


@pytest.mark.parametrize("parts", [False, True])
def test_strength_0_and_switched_off_are_bit_equal_to_none(parts):
    net = Net()
    if parts:
        split(net.first, PARTS)
    expected = net(*inputs())
    lay_base_loras(net, [base_lora(net, strength=0.0)])
    assert torch.equal(net(*inputs()), expected)
    laid = lay_base_loras(net, [base_lora(net, use="training")])
    assert not torch.equal(net(*inputs()), expected)
    with laid.as_used():
        assert torch.equal(net(*inputs()), expected)
    assert not torch.equal(net(*inputs()), expected)


def test_what_belongs_to_the_base_stays_on_in_use():
    net = Net()
    laid = lay_base_loras(net, [base_lora(net)])
    on = net(*inputs())
    with laid.as_used():
        assert torch.equal(net(*inputs()), on)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_other_dtypes_compute_in_the_dtype_of_their_input(dtype):
    net = Net().to(dtype)
    compute_in(net, torch.float32)
    lora = base_lora(net)
    whole = merged(net.float(), lora)
    net = Net().to(dtype)
    compute_in(net, torch.float32)
    lay_base_loras(net, [lora])
    assert net(*inputs()).item() == pytest.approx(whole(*inputs()).item(), rel=1e-2)


class Patchable:
    family = "toy"

    def __init__(self, module):
        self.module = module

    def file_key(self, path):
        return path


@pytest.mark.parametrize("stored", ["plain", "parts", "scaled"])
def test_a_file_is_laid_over_the_base_with_its_base_lora(stored):
    """Also where a layer is replaced for the time, and for a DoRA, whose change depends on the weights below it."""
    net = Net()
    if stored == "parts":
        split(net.first, PARTS)
    if stored == "scaled":
        net.first.scale = torch.tensor(0.5)
    path = "first.to_q" if stored == "parts" else "first"
    rows = 6 if stored == "parts" else 10
    lora = base_lora(net, paths=["first", "blocks.0.a"])
    lay_base_loras(net, [lora])
    dense = dense_weight(net.get_submodule(path))
    file = {f"{path}.{name}": t for name, t in factors("lora", (rows, 8), 4).items()}
    file[f"{path}.dora_scale"] = torch.rand(rows, 1) + 0.5
    parts = {name.removeprefix(f"{path}."): t for name, t in file.items()}
    from lora_loom.trainer.lora.host_formula import weight_change

    x = inputs()[0]
    expected = x @ (dense + weight_change(parts, dense, 0.8)).t() + net.first.bias[:rows]
    before = net(*inputs())
    with patched(Patchable(net), file, 0.8):
        assert torch.allclose(net.first(x)[:, :rows], expected, atol=1e-5)
    assert torch.equal(net(*inputs()), before)


def test_what_cannot_be_a_base_lora_is_refused_by_name():
    net = Net()
    with pytest.raises(ModelFileError, match=r"blocks\.0\.a has the shape \(10, 8\), this model's layer \(10, 10\)"):
        change_of(factors("lora", (10, 8)), net.blocks[0].a, 1.0, "blocks.0.a")
    with pytest.raises(ModelFileError, match="conv is of the kind DoRA"):
        change_of({**factors("lora", (6, 4, 3, 3)), "dora_scale": torch.ones(6)}, net.conv, 1.0, "conv")
    with pytest.raises(ModelFileError, match="changes a LayerNorm"):
        change_of(factors("lora", (10, 10)), nn.LayerNorm(10), 1.0, "norm")
    with pytest.raises(ModelFileError, match="incomplete"):
        change_of({"lora_A.weight": torch.ones(2, 8)}, net.first, 1.0, "first")
    with pytest.raises(ModelFileError, match="damaged"):
        change_of({"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(10, 3)}, net.first, 1.0, "first")
