"""Parts of a fused Linear: they compute as the whole does, are adapted by themselves, and have no bytes of their own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.quantize import is_quantized, quantize, stored_bytes
from lora_loom.trainer.weights.row_parts import FusedLinear, split

PARTS = {"to_q": (0, 32), "to_k": (32, 64), "to_v": (64, 96), "proj_mlp": (96, 128)}


class Packed(torch.Tensor):
    """A weight that knows how to unpack itself, as the host's."""

    def dequantize(self):
        return self.as_subclass(torch.Tensor) * 0.5


def network(stored="fp32", *, bias=True):
    """One fused Linear in a module."""
    torch.manual_seed(0)
    layer = FrozenLinear(16, 128, bias=bias)
    if stored == "bf16":
        layer.to(torch.bfloat16)
    if stored.startswith("scaled"):
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
        layer.scale = torch.rand(128, 1) if stored == "scaled rows" else torch.tensor(0.5)
    if stored == "packed":
        layer._parameters["weight"] = layer.weight.detach().clone().as_subclass(Packed)
    root = nn.Module()
    root.linear = layer
    return root.requires_grad_(False)


STORED = ("fp32", "bf16", "scaled", "scaled rows", "packed")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("bias", [True, False])
def test_parts_compute_what_the_whole_does(stored, bias):
    root, x = network(stored, bias=bias), torch.rand(2, 3, 16, requires_grad=True)
    expected = root.linear(x)
    before = stored_bytes(root)
    split(root.linear, PARTS)
    assert torch.equal(root.linear(x), expected)
    assert stored_bytes(root) == before
    each = torch.cat([part(x) for part in root.linear.children()], dim=-1)
    assert torch.allclose(each, expected, atol=1e-6)
    weights = torch.rand(each.shape)
    [mine] = torch.autograd.grad((each * weights).sum(), x)
    [whole] = torch.autograd.grad((expected * weights).sum(), x)
    assert torch.allclose(mine, whole, atol=1e-5)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_an_adapter_on_parts_changes_their_rows_alone(stored, kind):
    root, x = network(stored), torch.rand(5, 16)
    plain = root.linear(x)
    split(root.linear, PARTS)
    paths = ["linear.to_q", "linear.to_v"]
    adapter = inject(root, paths, NetworkConfig(kind=kind, rank=2), seed=0)
    assert torch.allclose(root.linear(x), plain, atol=2e-2 if kind == "dora" else 1e-6)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1)
    changed = (root.linear(x) - plain).abs().amax(0)
    assert changed[:32].min() > 0
    assert changed[64:96].min() > 0
    assert torch.equal(changed[32:64], torch.zeros(32))
    assert torch.equal(changed[96:], torch.zeros(32))
    root.linear(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters().values())
    with adapter.disabled():
        assert torch.allclose(root.linear(x), plain, atol=1e-6)
    names = {"linear.to_q": "unit.to_q", "linear.to_v": "unit.to_v"}
    tensors = to_file(adapter, names.__getitem__, torch.float32)
    assert max_relative_error(adapter, names.__getitem__, tensors)[0] < 1e-4


def test_an_adapter_on_the_whole_is_one_as_before():
    root, other, x = network(), network(), torch.rand(5, 16)
    split(root.linear, PARTS)
    for one in (root, other):
        adapter = inject(one, ["linear"], NetworkConfig(rank=2), seed=0)
        with torch.no_grad():
            for parameter in adapter.parameters().values():
                parameter.add_(0.1)
    assert torch.equal(root.linear(x), other.linear(x))


def test_a_fused_linear_is_quantized_and_its_parts_with_it():
    root, x = network(), torch.rand(5, 16)
    plain = root.linear(x)
    split(root.linear, PARTS)
    quantize(root, "int8", torch.float32)
    assert is_quantized(root)
    assert isinstance(root.linear, FusedLinear)
    quantized = root.linear(x)
    assert 0 < (quantized - plain).abs().max() < 0.05
    assert torch.allclose(torch.cat([part(x) for part in root.linear.children()], -1), quantized, atol=1e-5)


def test_computing_in_another_dtype_keeps_the_parts_and_the_stored_weight():
    root, x = network("bf16"), torch.rand(5, 16)
    split(root.linear, PARTS)
    before = root.linear.weight.data_ptr()
    compute_in(root, torch.float32)
    assert isinstance(root.linear, FusedLinear)
    assert root.linear.weight.data_ptr() == before
    assert root.linear.to_q(x).dtype == torch.float32


@pytest.mark.parametrize("parts", [{"a": (0, 32)}, {"a": (0, 32), "b": (64, 128)}, {"a": (0, 32), "b": (16, 128)}])
def test_parts_must_cover_the_rows(parts):
    with pytest.raises(ValueError, match="do not cover 128 rows one after another"):
        split(network().linear, parts)
    with pytest.raises(ValueError, match="a Linear cannot be split into rows"):
        split(nn.Linear(16, 128), PARTS)


@pytest.mark.parametrize("stored", STORED)
def test_a_lora_file_on_one_part_is_applied_and_taken_off_again(stored):
    """As a score or a sweep does with a file that was trained on parts."""
    root, x = network(stored), torch.rand(2, 16)
    split(root.linear, PARTS)
    before = root.linear(x)
    down, up = torch.rand(2, 16), torch.rand(32, 2)
    denoiser = SimpleNamespace(family="toy", module=root, file_key=lambda path: f"toy.{path}")
    file = {"toy.linear.to_k.lora_A.weight": down, "toy.linear.to_k.lora_B.weight": up}
    with torch.no_grad(), patched(denoiser, file, 0.5):
        change = root.linear(x) - before
        assert torch.allclose(change[:, 32:64], 0.5 * x @ down.T @ up.T, rtol=2e-2, atol=2e-2)
        assert torch.allclose(change[:, :32], torch.zeros(2, 32), atol=1e-5)
        assert torch.allclose(change[:, 64:], torch.zeros(2, 64), atol=1e-5)
    assert torch.equal(root.linear(x), before)
