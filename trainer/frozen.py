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
    """The weight as plain numbers of a format, times its scale if it has one."""
    plain = weight.dequantize() if is_packed(weight) else weight
    plain = plain.to(dtype)
    return plain if scale is None else plain * scale.to(device=plain.device, dtype=dtype)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
        ctx.weight, ctx.scale = weight, scale  # frozen: a reference is enough, and packed tensors cannot be saved
        return F.linear(x, dense(weight, x.dtype, scale), _like(bias, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0] @ dense(ctx.weight, grads[0].dtype, ctx.scale), None, None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, x.shape
        return F.conv2d(x, dense(weight, x.dtype), _like(bias, x), *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = conv2d_input(ctx.shape, dense(ctx.weight, grads[0].dtype), grads[0], *ctx.geometry)  # type: ignore[no-untyped-call]
        return grad, None, None, None


class FrozenLinear(nn.Linear):
    scale: Tensor | None = None
    """Factor on the stored weight (scaled fp8 files)."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dtype == input.dtype and self.scale is None and not is_packed(self.weight):
            return F.linear(input, self.weight, _like(self.bias, input))
        return _Linear.apply(input, self.weight, self.bias, self.scale)  # type: ignore[no-untyped-call]


class FrozenConv2d(nn.Conv2d):
    """Zero padding only."""

    def forward(self, input: Tensor) -> Tensor:
        geometry: Any = (self.stride, self.padding, self.dilation, self.groups)
        if self.weight.dtype == input.dtype:
            return F.conv2d(input, self.weight, _like(self.bias, input), *geometry)
        return _Conv2d.apply(input, self.weight, self.bias, geometry)  # type: ignore[no-untyped-call]


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Make a frozen network compute in `dtype`: large weights stay as they are stored, small ones are cast once."""
    for part in module.modules():
        large = _casts_on_use(part)
        if large and part.weight.dtype != dtype:
            part.__class__ = _FROZEN.get(type(part), type(part))
        for name, parameter in list(part.named_parameters(recurse=False)):
            small = not (large and name == "weight")
            if small and type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.dtype != dtype:
                setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point() and buffer.element_size() == 1:  # fp8 has no arithmetic
                setattr(part, name, buffer.to(dtype))


_FROZEN: dict[type, type] = {nn.Linear: FrozenLinear, nn.Conv2d: FrozenConv2d}


def _casts_on_use(part: nn.Module) -> bool:
    """A Linear or zero-padded Conv2d whose weight is a plain tensor."""
    known = type(part) in _FROZEN or type(part) in _FROZEN.values()
    return known and (not isinstance(part, nn.Conv2d) or part.padding_mode == "zeros")
