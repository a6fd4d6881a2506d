"""LoRA of a frozen Linear or convolution as two autograd functions: A x first, then W x + b + (s B) A x.

The first keeps x, A x and the small matrices for the backward pass, the second nothing, and the gradient of x is summed where it is
made. A recomputed block often ends with a frozen product whose result no gradient needs: as nothing is kept of it, torch's
checkpointing stops before it, and it is not calculated a second time. The numbers of the forward pass are those of the plain formula.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...weights.changes import changes_of
from ...weights.frozen import FrozenConv2d, FrozenLinear, dense, product, stored_weight
from ...weights.packing.linear import has_rows
from ...weights.packing.row_scaled import is_row_scaled
from ...weights.row_parts import FusedLinear, RowPart

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(stride, padding, dilation) of a convolution."""
POINT: Geometry = ((1, 1), (0, 0), (1, 1))
"""That of a 1 x 1 convolution."""
PLAIN = (Tensor, nn.Parameter)
CACHED = 1 << 19
"""Numbers of a matrix that in float32 takes two megabytes."""


class Frozen(NamedTuple):
    """What a layer computes with: its weight, or what brings it, its bias, the factor of a scaled weight; of a convolution its geometry."""

    weight: Any
    bias: Tensor | None
    scale: Tensor | None
    geometry: Geometry | None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight in a dtype."""
        if self.scale is None and type(self.weight) in PLAIN:  # most are, and this runs often
            return cast(Tensor, self.weight.to(dtype))
        return dense(self.weight, dtype, self.scale)

    def product(self, x: Tensor) -> Tensor:
        """W x + b, by the same calls as the layer without an adapter, so that with B = 0 its numbers do not change."""
        bias, weight = None if self.bias is None else self.bias.to(x.dtype), self.dense(x.dtype)
        is_flat = x.ndim == 3 and x.is_contiguous()  # F.linear is this product then, and its result a view
        if weight is self.weight and not is_flat:
            return F.linear(x, weight, bias)
        return product(x, weight, bias)


def frozen_of(layer: nn.Module, x: Tensor) -> Frozen | None:
    """None for a layer that computes in its own way: one of a library, with base LoRAs over it, or in 8-bit numbers."""
    if torch.compiler.is_compiling() or changes_of(layer):
        return None
    if type(layer) in (nn.Conv2d, FrozenConv2d):
        convolution = cast(nn.Conv2d, layer)
        if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
            return None
        geometry = cast(Geometry, (convolution.stride, convolution.padding, convolution.dilation))
        return _unless_trained(Frozen(stored_weight(layer), convolution.bias, None, geometry))
    if not _is_frozen_linear(layer):
        return None
    linear = cast(Any, layer)
    weight = linear.stored() if type(layer) is RowPart else stored_weight(layer)
    if is_row_scaled(weight) and has_rows(x) and not linear.is_exact:
        return None
    return _unless_trained(Frozen(weight, linear.bias, getattr(layer, "scale", None), None))


def _is_frozen_linear(layer: nn.Module) -> bool:
    if type(layer) is FusedLinear:
        return layer.is_whole
    return type(layer) in (RowPart, FrozenLinear) or (type(layer) is nn.Linear and type(layer.weight) in PLAIN)


def _unless_trained(frozen: Frozen) -> Frozen | None:
    return None if getattr(frozen.weight, "requires_grad", False) else frozen


class _Between:
    """What the two functions of a call hand each other past autograd: B in the forward pass, the output's gradient in the backward pass."""

    __slots__ = ("grad", "up")
    up: Tensor
    grad: Tensor

    def take(self, name: str) -> Tensor:
        """The value, which is not held any longer."""
        value: Tensor = getattr(self, name)
        delattr(self, name)
        return value


def lora_output(frozen: Frozen, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Returns W x + b + (s B) A x in the dtype of x. A, `down`, is (r, I) or (r, I, K, K); B, `up`, is (O, r) or (O, r, 1, 1)."""
    inner, outer = (_Inner, _Outer) if frozen.geometry is None else (_InnerConvolution, _OuterConvolution)
    between = _Between()
    made = inner.apply(x, down, up, scale, frozen, between)  # type: ignore[no-untyped-call]
    x, hidden = made if isinstance(made, tuple) else (x, made)
    out: Tensor = outer.apply(x, hidden, frozen, between)  # type: ignore[no-untyped-call]
    return out


def _dtype_of_products(rows: Tensor, up: Tensor) -> torch.dtype:
    """Of a Linear's small products: that of x (N, I); but on a CPU, where a product in bfloat16 takes 25 microseconds before it begins,
    float32 for those whose sides stay in the processor's cache."""
    largest = len(rows) * max(rows.shape[1], up.shape[0])
    is_small = rows.device.type == "cpu" and rows.dtype == torch.bfloat16 and largest <= CACHED
    return torch.float32 if is_small else rows.dtype


def _cast(down: Tensor, up: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both matrices in a dtype, the second one scaled; nothing is multiplied where alpha is the rank."""
    return down.to(dtype), (up if scale == 1 else up * scale).to(dtype)


def _kept(ctx: Any, x: Tensor, hidden: Tensor, down: Tensor, up: Tensor, between: _Between) -> Any:
    """Returns (x, A x): x passes through where it needs a gradient, so that the one of the frozen product comes to be added to."""
    ctx.save_for_backward(x, hidden, down, up)
    ctx.between, between.up = between, up
    ctx.set_materialize_grads(False)
    return (x, hidden) if ctx.needs_input_grad[0] else hidden


class _Inner(torch.autograd.Function):
    """x and A x of a Linear, and the gradients of x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, frozen: Frozen, between: _Between) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        dtype = _dtype_of_products(rows, up)
        small_down, small_up = _cast(down, up, scale, dtype)
        ctx.scale = scale
        return _kept(ctx, x, rows.to(dtype) @ small_down.t(), small_down, small_up, between)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, hidden, down, up = ctx.saved_tensors
        grad = ctx.between.take("grad")
        rows = grad.reshape(-1, grad.shape[-1]).to(hidden.dtype)
        to_hidden = rows @ up
        to_up, to_down = rows.t() @ hidden, to_hidden.t() @ x.reshape(-1, x.shape[-1]).to(hidden.dtype)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = grads[0]
            _add_product(to_x.view(-1, to_x.shape[-1]), to_hidden, down)
        return to_x, to_down.float(), _scaled(to_up, ctx.scale), None, None, None


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices, which may be of another dtype, to a matrix in its place."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.add_(left @ right)


def _scaled(grad: Tensor, scale: float) -> Tensor:
    return grad.float() if scale == 1 else grad.float() * scale


class _Outer(torch.autograd.Function):
    """W x + b of a Linear, and (s B) A x added to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, frozen: Frozen, between: _Between) -> Tensor:
        ctx.frozen, ctx.between = frozen, between
        out = frozen.product(x)
        _add_product(out.view(-1, out.shape[-1]), hidden, between.take("up").t())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        [grad] = grads
        ctx.between.grad = grad
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (grad.reshape(-1, grad.shape[-1]) @ ctx.frozen.dense(grad.dtype)).view(*grad.shape[:-1], -1)
        return to_x, None, None, None


def _convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of a convolution's input and weight, those that are wanted."""
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *map(list, geometry), False, [0, 0], 1, [*wanted, False]
    )
    return to_x, to_weight


class _InnerConvolution(torch.autograd.Function):
    """The same of a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, frozen: Frozen, between: _Between) -> Any:
        small_down, small_up = _cast(down, up, scale, x.dtype)
        ctx.geometry, ctx.scale = frozen.geometry, scale
        return _kept(ctx, x, F.conv2d(x, small_down, None, *ctx.geometry), small_down, small_up, between)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, hidden, down, up = ctx.saved_tensors
        to_hidden, to_up = _convolution_gradients(ctx.between.take("grad"), hidden, up, POINT, (True, True))
        needs_x = ctx.needs_input_grad[0]
        to_x, to_down = _convolution_gradients(to_hidden, x, down, ctx.geometry, (needs_x, True))
        return (grads[0].add_(to_x) if needs_x else None), to_down.float(), _scaled(to_up, ctx.scale), None, None, None


class _OuterConvolution(torch.autograd.Function):
    """The same of a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, frozen: Frozen, between: _Between) -> Tensor:
        ctx.frozen, ctx.between, ctx.shape = frozen, between, x.shape
        bias = None if frozen.bias is None else frozen.bias.to(x.dtype)
        out = F.conv2d(x, frozen.dense(x.dtype), bias, *frozen.geometry)  # type: ignore[misc]
        return out.add_(F.conv2d(hidden, between.take("up")))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        [grad] = grads
        ctx.between.grad = grad
        to_x = None
        if ctx.needs_input_grad[0]:
            like = grad.new_empty(1).expand(ctx.shape)  # of the input only its shape is asked for
            weight, geometry = ctx.frozen.dense(grad.dtype), ctx.frozen.geometry
            to_x, _ = _convolution_gradients(grad, like, weight, geometry, (True, False))
        return to_x, None, None, None
