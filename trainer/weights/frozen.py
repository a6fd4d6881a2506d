"""Frozen layers that compute in the dtype of their input, whatever the dtype of their weight, without keeping a cast copy.

Autograd would save the cast weight of every layer for the backward pass, a second model in memory. These layers keep the
stored weight and cast or dequantize it again in the backward pass. They are subclasses of nn.Linear and nn.Conv2d, as PEFT
requires. Weights may have any floating dtype, fp8 with a scale included, or be quantized tensors with `dequantize()`.
"""

from typing import Any, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .packing.linear import has_rows, scaled_linear
from .packing.row_scaled import is_row_scaled


def is_quantized_tensor(weight: object) -> bool:
    """Whether a weight is a tensor subclass that holds quantized numbers (optimum-quanto's or ComfyUI's)."""
    return type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize")


def stored_weight(layer: Any) -> Any:
    """What a layer computes with: its weight, or, where that is kept elsewhere, what brings it (`streaming.StreamedWeight`)."""
    stream = getattr(layer, "stream", None)
    return layer.weight if stream is None else stream


def dense(weight: Any, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """A weight as a plain tensor of a dtype, dequantized and multiplied by its scale if it has one.

    A weight that is sharded over several processes is gathered; all processes must call this together.
    """
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    plain = weight.dequantize() if is_quantized_tensor(weight) else weight
    plain = plain.to(dtype)
    return plain if scale is None else plain * scale.to(device=plain.device, dtype=dtype)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear whose result is not a view: autograd forbids networks to modify a view made in a Function in place."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    rows = out.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    else:
        torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    return out


def _assert_frozen(ctx: "_Saved") -> None:
    """These layers give their weight no gradient, so a weight that requires one would silently never be trained."""
    assert not any(ctx.needs_input_grad[1:]), "the weight or bias of a frozen layer requires a gradient"


class _Saved(Protocol):
    """What these functions keep for the backward pass, as attributes of the autograd context."""

    needs_input_grad: tuple[bool, ...]
    weight: Tensor
    scale: Tensor | None
    geometry: "Geometry"
    shape: torch.Size


Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
"""(stride, padding, dilation, groups) of a convolution."""


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Saved, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        _assert_frozen(ctx)
        ctx.weight, ctx.scale = (
            weight,
            scale,
        )  # it is frozen, so a reference suffices; quantized tensors cannot be saved for backward
        return product(x, dense(weight, x.dtype, scale), _like(bias, x))

    @staticmethod
    def backward(ctx: _Saved, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0] @ dense(ctx.weight, grads[0].dtype, ctx.scale), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Saved, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: "Geometry") -> Tensor:
        _assert_frozen(ctx)
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, x.shape
        return F.conv2d(x, dense(weight, x.dtype), _like(bias, x), *geometry)

    @staticmethod
    def backward(ctx: _Saved, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = conv2d_input(ctx.shape, dense(ctx.weight, grads[0].dtype), grads[0], *ctx.geometry)  # type: ignore[no-untyped-call]
        return grad, None, None, None


class _TrainedLinear(torch.autograd.Function):
    """The same for a weight that trains, stored in another dtype: the cast copy is not kept here either."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return product(x, weight.to(x.dtype), _like(bias, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad, rows = grads[0], grads[0].reshape(-1, grads[0].shape[-1])
        to_x = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        return to_x, to_weight, None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)


def frozen_linear(
    x: Tensor, weight: Any, bias: Tensor | None, scale: Tensor | None, *, is_exact: bool = False
) -> Tensor:
    """Returns x W^T + b for a weight in any dtype, cast or dequantized on use. `weight` is a tensor or an object with `dequantize()`.

    One whose numbers devices can multiply (`packing.row_scaled`) is multiplied as it is, unless it shall be exact or x has few rows.
    """
    if weight.dtype == x.dtype and scale is None and not is_quantized_tensor(weight):
        return F.linear(x, weight, _like(bias, x))
    if not is_exact and is_row_scaled(weight) and has_rows(x):
        return scaled_linear(x, weight, bias)
    if getattr(weight, "requires_grad", False):
        return _TrainedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _Linear.apply(x, weight, bias, scale)  # type: ignore[no-untyped-call]


def frozen_conv2d(x: Tensor, weight: Any, bias: Tensor | None, like: nn.Conv2d) -> Tensor:
    """Convolves x with a weight in any dtype, as the layer `like` does. `weight` is as in `frozen_linear`."""
    geometry = cast(Geometry, (like.stride, like.padding, like.dilation, like.groups))
    if weight.dtype == x.dtype and not is_quantized_tensor(weight):
        return F.conv2d(x, weight, _like(bias, x), *geometry)
    if getattr(weight, "requires_grad", False):
        return F.conv2d(x, weight.to(x.dtype), _like(bias, x), *geometry)
    return _Conv2d.apply(x, weight, bias, geometry)  # type: ignore[no-untyped-call]


class FrozenLinear(nn.Linear):
    """A Linear with a frozen weight (O, I) of any dtype."""

    scale: Tensor | None = None
    """Factor of the stored weight in scaled fp8 files."""
    stream: Any = None
    """What brings a weight that is kept elsewhere (`streaming.StreamedWeight`); None for one that lies on the device."""
    is_exact: bool = False
    """A weight in 8 bits is unpacked although the device could multiply it as it is."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the dtype of `input`."""
        return frozen_linear(input, stored_weight(self), self.bias, self.scale, is_exact=self.is_exact)


class FrozenConv2d(nn.Conv2d):
    """A Conv2d with zero padding and a frozen weight of any dtype."""

    stream: Any = None
    """The stream of a base that does not fit the device, as in `FrozenLinear`."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the dtype of `input`."""
        return frozen_conv2d(input, stored_weight(self), self.bias, self)


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a frozen network compute in `dtype`. Weights of Linear and Conv2d keep their dtype, all other parameters are cast once."""
    for path, part in list(module.named_modules()):
        large = _casts_on_use(part)
        frozen = _casting(module, path, part) if large and _must_cast(part.weight, dtype) else part
        for name, parameter in list(frozen.named_parameters(recurse=False)):
            small = not (large and name == "weight")
            if small and type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.dtype != dtype:
                setattr(frozen, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name, buffer in list(frozen.named_buffers(recurse=False)):
            if buffer.is_floating_point() and buffer.element_size() == 1:  # there is no arithmetic in fp8
                setattr(frozen, name, buffer.to(dtype))


def _must_cast(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a layer must be replaced by one that casts.

    This includes quantized weights on a CPU: quanto's kernel for int8 in bfloat16 ends with a segmentation fault there.
    """
    return weight.dtype != dtype or (is_quantized_tensor(weight) and weight.device.type == "cpu")


def _casting(root: nn.Module, path: str, part: nn.Linear | nn.Conv2d) -> nn.Module:
    """Turn a layer into one that casts. A quantized layer, which computes in one dtype only, is replaced by a new one."""
    if isinstance(part, FrozenLinear | FrozenConv2d):
        return part
    if not is_quantized_tensor(part.weight):
        part.__class__ = FrozenLinear if isinstance(part, nn.Linear) else FrozenConv2d
        return part
    assert isinstance(part, nn.Linear)
    layer = FrozenLinear(part.in_features, part.out_features, bias=False, device="meta")
    layer.weight, layer.bias = part.weight, part.bias
    if "original" in vars(part):  # `quantize.Original`
        layer.original = part.original
    replace_module(root, path, layer.eval())
    return layer


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module into a network in place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, name, module)


def _casts_on_use(part: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a layer is a Linear or zero-padded Conv2d of torch or of this module, or a quantized Linear."""
    if isinstance(part, nn.Linear):
        return type(part) is nn.Linear or isinstance(part, FrozenLinear) or is_quantized_tensor(part.weight)
    return type(part) in (nn.Conv2d, FrozenConv2d) and part.padding_mode == "zeros"
