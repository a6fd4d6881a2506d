"""Products of 8-bit numbers: forward and gradient by their formula, few rows exact, files taken as they are, nothing kept."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.memory_plan.base_sizes import base_sizes
from lora_loom.trainer.memory_plan.meter import LiveBytes
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.packing import layers, row_scaled
from lora_loom.trainer.weights.packing.layers import (
    check_matmul,
    exact_products,
    product_layers,
    rounding_of,
    use_products,
)
from lora_loom.trainer.weights.packing.row_scaled import LEAST_ROWS, NUMBERS, RowScaled, to_row_scaled
from lora_loom.trainer.weights.quantize import stored_bytes
from lora_loom.trainer.weights.row_parts import split

CPU = torch.device("cpu")
KINDS = ["int8", "fp8"]
ERROR = {"int8": 0.013, "fp8": 0.045}
"""Largest relative error of an output or a gradient to exact products of the unrounded weight."""


def network(inner=64, outer=96, bias=True, blocks=2, kind=FrozenLinear):
    """Blocks of two layers."""
    torch.manual_seed(0)
    there, back = (inner, outer), (outer, inner)
    members = [nn.Sequential(*(kind(*sides, bias=bias) for sides in (there, back))) for _ in range(blocks)]
    return nn.Sequential(nn.ModuleList(members), nn.Linear(inner, inner)).requires_grad_(False)


def used(kind, dtype=torch.float32, **options):
    root = network(**options)
    use_products(root, kind, dtype)
    compute_in(root, dtype)
    return root


def apart(value, reference):
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm())


def rounded(x, numbers):
    """By rows, in fp64: codes and factors of x."""
    largest = {torch.int8: 127, torch.float8_e4m3fn: 448}[numbers.dtype]
    factors = x.double().abs().amax(-1, keepdim=True) / largest
    codes = x.double() / factors
    return (codes.round() if numbers.dtype == torch.int8 else codes.float().to(numbers.dtype).double()), factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_formula(kind, dtype):
    numbers, layer = NUMBERS[kind], used(kind, dtype)[0][0][0]
    weight = layer.weight
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    gradient = torch.randn(2, 20, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    out = layer(x)
    [mine] = torch.autograd.grad(out, x, gradient)
    codes, factors = rounded(x.detach(), numbers)
    expected = codes @ weight.codes.double().t() * factors * weight.factors.double().t() + layer.bias.double()
    assert (out.dtype, mine.dtype, out.shape, mine.shape) == (dtype, dtype, (2, 20, 96), x.shape)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 5e-4}[dtype]
    assert apart(out, expected) < tolerance
    codes, factors = rounded(gradient.float() * weight.factors.t(), numbers)
    assert apart(mine, codes @ weight.codes.double() * factors) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_both_are_near_those_of_the_whole_weight(kind):
    root, plain = used(kind), network()
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    gradient = torch.randn(40, 96, generator=torch.Generator().manual_seed(4))
    [mine], [exact] = (torch.autograd.grad(one[0][0][0](x), x, gradient) for one in (root, plain))
    assert 0 < apart(root[0][0][0](x), plain[0][0][0](x)) < ERROR[kind]
    assert 0 < apart(mine, exact) < ERROR[kind]
    with exact_products(root):
        [same] = torch.autograd.grad(root[0][0][0](x), x, gradient)
    assert apart(same, exact) < apart(mine, exact)
    assert rounding_of(root) == pytest.approx(
        apart(
            torch.cat([one.weight.dequantize().flatten() for one in product_layers(root)]),
            torch.cat([one.weight.flatten() for block in plain[0] for one in block]),
        ),
        rel=1e-3,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_are_zeros_and_what_is_not_finite_stays_so(kind):
    weight = torch.randn(16, 32)
    weight[3] = 0
    assert torch.equal(to_row_scaled(weight, NUMBERS[kind]).dequantize()[3], torch.zeros(32))
    layer = used(kind, bias=False)[0][0][0]
    x = torch.randn(LEAST_ROWS, 64)
    x[0], x[1, 0] = 0, torch.nan
    out = layer(x)
    assert torch.equal(out[0], torch.zeros(96))
    assert out[1].isnan().all()
    assert out[2:].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_are_multiplied_by_the_unpacked_weight(kind):
    """CUDA has no product for them, and modulation of one image is no work."""
    layer = used(kind)[0][0][0]
    x = torch.randn(LEAST_ROWS - 1, 64)
    expected = nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    more = torch.cat([x, x[:1]])
    assert not torch.allclose(layer(more)[:-1], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_fused_linear_multiply_by_their_rows(kind):
    root = network()
    split(root[0][0][0], {"q": (0, 32), "kv": (32, 96)})
    use_products(root, kind, torch.float32)
    x = torch.rand(20, 64)
    parts = torch.cat([part(x) for part in root[0][0][0].children()], dim=-1)
    assert torch.allclose(parts, root[0][0][0](x), atol=1e-6)
    with exact_products(root):
        assert not torch.allclose(parts, torch.cat([part(x) for part in root[0][0][0].children()], dim=-1), atol=1e-6)


def test_layers_that_no_device_takes_stay_dense():
    root = network(inner=64, outer=100)
    with pytest.raises(ConfigError, match=r"model\.matmul = 'int8': no Linear .* multiples of 8; use 'off'"):
        use_products(root, "int8", torch.float32)
    mixed = nn.Sequential(network(64, 100)[0], network(64, 72)[0])
    use_products(mixed, "int8", torch.float32)
    assert [layer.in_features for layer in product_layers(mixed)] == [64, 72, 64, 72]
    with pytest.raises(ConfigError, match="multiples of 16"):
        use_products(network(64, 72), "fp8", torch.float32)


@pytest.mark.parametrize("scale", [None, torch.tensor(0.5), torch.linspace(0.1, 1, 96)])
def test_a_float8_file_is_multiplied_as_it_is(scale):
    root = network(bias=False)
    layer = root[0][0][0]
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    layer.scale = scale
    before = layer.weight.data_ptr()
    expected = layer.weight.float() * (1 if scale is None else scale.reshape(-1, 1))
    use_products(root, "fp8", torch.float32)
    made = root[0][0][0]
    assert made.weight.codes.data_ptr() == before
    assert torch.equal(made.weight.dequantize(), expected)
    assert made.scale is None
    x = torch.rand(20, 64)
    assert 0 < apart(made(x), x @ expected.t()) < ERROR["fp8"]


def test_what_somebody_else_has_quantized_is_taken():
    root = network(bias=False)
    codes, factors = torch.randint(-127, 128, (96, 64), dtype=torch.int8), torch.tensor(0.25)

    class Theirs(torch.Tensor):
        def dequantize(self):
            raise AssertionError("it was unpacked")

    theirs = torch.zeros(96, 64).as_subclass(Theirs)
    root[0][0][0].weight = nn.Parameter(theirs, requires_grad=False)
    use_products(
        root, "int8", torch.float32, taken=lambda weight: (codes, factors) if isinstance(weight, Theirs) else None
    )
    made = root[0][0][0].weight
    assert made.codes.data_ptr() == codes.data_ptr()
    assert torch.equal(made.dequantize(), codes * 0.25)
    assert len(product_layers(root)) == 4


def test_nothing_but_the_output_is_kept_for_the_backward_pass():
    layer = used("int8", inner=256, outer=256, bias=False)[0][0][0]
    x = torch.randn(32, 256, requires_grad=True)
    meter = LiveBytes()
    meter.hold([x, layer.weight.codes, layer.weight.factors])
    with meter:
        before = meter.live
        out = layer(x)
        assert meter.live - before == out.numel() * 4


def test_outputs_may_be_added_to_in_place():
    layer = used("int8")[0][0][0]
    x = torch.randn(2, 20, 64, requires_grad=True)
    [expected] = torch.autograd.grad((layer(x) + 1).square().sum(), x)
    out = layer(x)
    out += 1
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_several_are_traced_for_any_shape(kind):
    """By torch.compile, with torch's own kernels."""
    torch._dynamo.reset()
    block = used(kind)[0][0]
    compiled = torch.compile(block.forward, dynamic=True, fullgraph=True, backend="aot_eager")
    for rows in (20, 31):
        x = torch.randn(2, rows, 64, requires_grad=True)
        mine, plain = (torch.autograd.grad(one(x).square().sum(), x)[0] for one in (compiled, block))
        assert torch.allclose(mine, plain, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "packing"), [("int8", "int8"), ("fp8", "float8")])
def test_it_is_about_as_large_as_was_predicted(kind, packing):
    root = network(256, 512, blocks=8).to(torch.bfloat16)
    expected = base_sizes(root, packing).total
    use_products(root, kind, torch.bfloat16)
    assert stored_bytes(root) == pytest.approx(expected, rel=0.07)  # a Linear outside of blocks stays as it is


def test_a_weight_moves_and_keeps_its_kind():
    weight = nn.Parameter(to_row_scaled(torch.randn(8, 16), NUMBERS["int8"]), requires_grad=False)
    moved = weight.to("meta")
    assert isinstance(moved, RowScaled)
    assert moved.codes.device.type == moved.factors.device.type == "meta"
    assert weight.to(torch.bfloat16).dequantize().dtype == torch.bfloat16
    assert torch.equal(weight.to(torch.bfloat16).factors, weight.factors)


@pytest.mark.parametrize("kind", KINDS)
def test_the_products_of_this_device_are_tried(kind, monkeypatch):
    check_matmul("off", CPU)
    check_matmul(kind, CPU)

    def missing(first, second):
        raise RuntimeError("no kernel\nand more")

    broken = {**NUMBERS, kind: row_scaled.Numbers(NUMBERS[kind].dtype, 8, missing)}
    monkeypatch.setattr(layers, "NUMBERS", broken)
    other = next(one for one in KINDS if one != kind)
    with pytest.raises(
        ConfigError,
        match=rf"model\.matmul = '{kind}': cpu has no product of such numbers here \(RuntimeError: no kernel\); use '{other}' or 'off'",
    ):
        check_matmul(kind, CPU)


def test_a_device_whose_products_are_wrong_is_refused(monkeypatch):
    wrong = row_scaled.Numbers(torch.int8, 8, lambda first, second: torch.zeros(17, 32))
    monkeypatch.setattr(layers, "NUMBERS", {"int8": wrong})
    with pytest.raises(ConfigError, match=r"its results are wrong\); use 'off'"):
        check_matmul("int8", CPU)
