"""A base in nf4: packed as bitsandbytes packs, gradients those of the unpacked weight, and a run on it resumes exactly."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.errors import ConfigError, RunError
from lora_loom.trainer.memory_plan.base_sizes import base_sizes
from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.weights import quantize as quantizing
from lora_loom.trainer.weights.bits import same_bits
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.nf4 import Nf4Tensor, to_nf4
from lora_loom.trainer.weights.quantize import check_quantize, is_quantized, quantize, stored_bytes
from lora_loom.trainer.weights.row_parts import split
from lora_loom.trainer.weights.streaming import plain_parts
from tests.conftest import SilentHost, make_config

functional = pytest.importorskip("bitsandbytes.functional")
SHAPES = [(128, 256), (33, 50), (7, 9), (1, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def packed(inner, outer, dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(inner, outer, bias=bias)).requires_grad_(False)
    quantize(root, "nf4", dtype)
    compute_in(root, dtype)
    return root


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_holds_what_bitsandbytes_holds(shape, dtype):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mine = to_nf4(weight)
    codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(mine.factors, state.absmax)
    assert torch.equal(mine.codes.flatten()[: weight.numel() // 2], codes.flatten()[: weight.numel() // 2])
    unpacked = mine.dequantize()
    assert (unpacked.shape, unpacked.dtype) == (shape, dtype)
    if shape[1] % 2 == 0:  # for odd rows bitsandbytes has no kernel on a CPU
        assert torch.equal(unpacked, functional.dequantize_4bit(codes, state))
    assert (unpacked - weight).float().norm() <= 0.11 * weight.float().norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_the_unpacked_weight(shape, bias):
    outer, inner = shape
    root = packed(inner, outer, bias=bias)
    plain = nn.Linear(inner, outer, bias=bias)
    plain.weight = nn.Parameter(root[0].weight.dequantize())
    plain.bias = root[0].bias
    x = torch.randn(2, 3, inner, requires_grad=True)
    gradient = torch.randn(2, 3, outer)
    [mine], [expected] = (torch.autograd.grad(layer(x), x, gradient) for layer in (root[0], plain))
    assert torch.allclose(root[0](x), plain(x), atol=1e-5)
    assert torch.allclose(mine, expected, atol=1e-5)
    assert type(root[0]) is FrozenLinear


def test_it_computes_what_a_linear4bit_of_bitsandbytes_does():
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    theirs = Linear4bit(128, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    theirs.weight = Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    theirs.to("cpu")
    root = nn.Sequential(nn.Linear(128, 64, bias=False)).requires_grad_(False)
    root[0].weight.copy_(weight)
    quantize(root, "nf4")
    x, gradient = torch.randn(5, 128, requires_grad=True), torch.randn(5, 64)
    [expected] = torch.autograd.grad(theirs(x), x, gradient)
    [mine] = torch.autograd.grad(root[0](x), x, gradient)
    # Where a CPU has instructions for bfloat16 its kernel rounds factors and products to that; elsewhere both are equal.
    assert (mine - expected).norm() < 5e-3 * expected.norm()
    assert (root[0](x) - theirs(x)).norm() < 5e-3 * theirs(x).norm()


def test_nothing_unpacked_is_kept_for_the_backward_pass():
    root = packed(256, 256, bias=False)
    x = torch.randn(1, 256, requires_grad=True)
    meter = LiveBytes()
    meter.hold([x, *root.parameters()])
    with meter:
        before = meter.live
        out = root(x)
        assert meter.live - before == out.numel() * 4
        assert meter.peak - before >= 256 * 256 * 4  # so it is seen by the meter


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_it_is_as_large_as_was_predicted(dtype):
    """4.5 bits a weight; the bias is kept."""
    plain = nn.Sequential(nn.Linear(250, 130), nn.Linear(130, 64)).to(dtype)
    expected = base_sizes(plain, "nf4").total
    quantize(plain, "nf4")
    assert stored_bytes(plain) == base_sizes(plain).total == expected
    weight = plain[1].weight
    assert 4.5 <= sum(part.numel() * part.element_size() for part in plain_parts(weight)) * 8 / weight.numel() < 4.51


def test_a_packed_weight_moves_and_keeps_its_bits():
    weight = to_nf4(torch.randn(6, 64))
    parameter = nn.Parameter(weight, requires_grad=False)
    moved = parameter.to("meta")
    assert isinstance(moved, Nf4Tensor)
    assert {part.device.type for part in plain_parts(moved)} == {"meta"}
    copy = parameter.clone()
    assert all(same_bits(a, b) for a, b in zip(plain_parts(copy), plain_parts(weight), strict=True))
    assert copy.codes.data_ptr() != weight.codes.data_ptr()
    assert parameter.to(torch.bfloat16).dequantize().dtype == torch.bfloat16
    assert torch.equal(parameter + 1, weight.dequantize() + 1)
    assert (moved + 1).shape == weight.shape


def test_parts_of_a_fused_linear_read_rows_of_the_packed_weight():
    root = nn.Sequential(FrozenLinear(16, 128)).requires_grad_(False)
    split(root[0], {"q": (0, 32), "kv": (32, 128)})
    quantize(root, "nf4")
    assert is_quantized(root)
    x = torch.rand(3, 16)
    assert torch.allclose(torch.cat([part(x) for part in root[0].children()], dim=-1), root(x), atol=1e-6)


def test_it_is_refused_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"quantize = 'nf4' needs the library bitsandbytes: pip install"):
        check_quantize("nf4")


def test_a_run_on_it_is_continued_exactly_and_not_as_another(tmp_path):
    def go(folder, quantize="nf4", stop_at=None, **memory):
        base = make_config("sd3", tmp_path).model.base
        config = make_config(
            "sd3", tmp_path / folder, model={"base": base, "quantize": quantize}, memory=memory,
            training={"steps": 4, "save_every": 2},
        )  # fmt: skip
        train(config, SilentHost(stop_at))
        last = run_folder(config).last_checkpoint()
        return (last.folder / "adapter.safetensors").read_bytes()

    whole = go("whole")
    go("parts", stop_at=2)
    with pytest.raises(RunError, match="quantize: 'nf4' -> 'int8'"):
        go("parts", quantize="int8")
    assert go("parts", base="stream") == whole
