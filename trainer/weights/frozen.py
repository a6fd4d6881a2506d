"""Frozen layers that compute in the input's number format whatever theirs is, without keeping the cast copy.

Autograd would save the cast weight of every layer for the backward pass: a second model in memory. Here the stored
weight is kept and cast, or unpacked, again when it is needed. The layers stay real nn.Linear and nn.Conv2d, which PEFT
asks for. Weights may be of any floating format, fp8 with a scale, or packed tensors that know `dequantize()`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


def is_packed(weight: Tensor) -> bool:
    """A tensor subclass that holds packed numbers (optimum-quanto's, the host's)."""
    return type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize")


def dense(weight: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """The weight as plain numbers of a format, times its scale if it has one.

    One that is split over several processes is put together, for which all of them must ask.
    """
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    plain = weight.dequantize() if is_packed(weight) else weight
    plain = plain.to(dtype)
    return plain if scale is None else plain * scale.to(device=plain.device, dtype=dtype)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear whose result is no view: networks that add to it in place could not, for a view made in a Function."""
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    rows = out.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    else:
        torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t(), out=rows)
    return out


def _assert_frozen(ctx: Any) -> None:
    """Weights get no gradient here: one that is trained would stand still without a word."""
    assert not any(ctx.needs_input_grad[1:]), "this layer's weight or bias is trained, and may only be frozen"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        _assert_frozen(ctx)
        ctx.weight, ctx.scale = weight, scale  # frozen: a reference is enough, and packed tensors cannot be saved
        return _linear(x, dense(weight, x.dtype, scale), _like(bias, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0] @ dense(ctx.weight, grads[0].dtype, ctx.scale), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        _assert_frozen(ctx)
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, x.shape
        return F.conv2d(x, dense(weight, x.dtype), _like(bias, x), *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = conv2d_input(ctx.shape, dense(ctx.weight, grads[0].dtype), grads[0], *ctx.geometry)  # type: ignore[no-untyped-call]
        return grad, None, None, None


def frozen_linear(x: Tensor, weight: Any, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """x W^T + b for a weight in any dtype, cast or unpacked on use; `weight` is a tensor or what knows `dequantize()`."""
    if weight.dtype == x.dtype and scale is None and not is_packed(weight):
        return F.linear(x, weight, _like(bias, x))
    return _Linear.apply(x, weight, bias, scale)  # type: ignore[no-untyped-call]


class FrozenLinear(nn.Linear):
    scale: Tensor | None = None
    """Factor on the stored weight (scaled fp8 files)."""

    def forward(self, input: Tensor) -> Tensor:
        return frozen_linear(input, self.weight, self.bias, self.scale)


class FrozenConv2d(nn.Conv2d):
    """Zero padding only."""

    def forward(self, input: Tensor) -> Tensor:
        geometry: Any = (self.stride, self.padding, self.dilation, self.groups)
        if self.weight.dtype == input.dtype:
            return F.conv2d(input, self.weight, _like(self.bias, input), *geometry)
        return _Conv2d.apply(input, self.weight, self.bias, geometry)  # type: ignore[no-untyped-call]


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a frozen network compute in `dtype`: large weights stay as they are stored, small ones are cast once."""
    for path, part in list(module.named_modules()):
        large = _casts_on_use(part)
        frozen = _casting(module, path, part) if large and _must_cast(part.weight, dtype) else part
        for name, parameter in list(frozen.named_parameters(recurse=False)):
            small = not (large and name == "weight")
            if small and type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.dtype != dtype:
                setattr(frozen, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name, buffer in list(frozen.named_buffers(recurse=False)):
            if buffer.is_floating_point() and buffer.element_size() == 1:  # fp8 has no arithmetic
                setattr(frozen, name, buffer.to(dtype))


def _must_cast(weight: Tensor, dtype: torch.dtype) -> bool:
    """Also packed weights on a CPU: quanto's own kernel for int8 in bfloat16 ends the process with a segmentation fault."""
    return weight.dtype != dtype or (is_packed(weight) and weight.device.type == "cpu")


def _casting(root: nn.Module, path: str, part: Any) -> nn.Module:
    """The layer, now one that casts; a packed one, which computes in a single format, gives its weight to a new one."""
    if isinstance(part, FrozenLinear | FrozenConv2d):
        return part
    if not is_packed(part.weight):
        part.__class__ = FrozenLinear if isinstance(part, nn.Linear) else FrozenConv2d
        return part
    made = FrozenLinear(part.in_features, part.out_features, bias=False, device="meta")
    made.weight, made.bias = part.weight, part.bias
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, leaf, made.eval())
    return made


def _casts_on_use(part: nn.Module) -> bool:
    """A Linear or zero-padded Conv2d of torch or of ours, or a packed Linear (which computes in one format only)."""
    if isinstance(part, nn.Linear):
        return type(part) is nn.Linear or isinstance(part, FrozenLinear) or is_packed(part.weight)
    return type(part) in (nn.Conv2d, FrozenConv2d) and part.padding_mode == "zeros"
