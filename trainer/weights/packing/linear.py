"""A frozen Linear whose products, forward and to the input's gradient, are made of 8-bit numbers. Nothing is saved but the weight itself."""

from typing import Any

import torch
from torch import Tensor

from .row_scaled import LEAST_ROWS, NUMBERS, Numbers, RowScaled, brought


def has_rows(x: Tensor) -> bool:
    """Whether x (…, I) has enough rows for the product of 8-bit numbers."""
    return x.numel() >= LEAST_ROWS * x.shape[-1]


def _numbers(codes: Tensor) -> Numbers:
    return NUMBERS["int8"] if codes.dtype == torch.int8 else NUMBERS["fp8"]


def _forward(x: Tensor, codes: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
    """(M, I) to (M, O)."""
    numbers = _numbers(codes)
    rows, by_row = numbers.rounded(x)
    product = numbers.product(rows, codes.t()).mul_(by_row).mul_(factors.t())
    if bias is not None:
        product.add_(bias)
    return product.to(x.dtype)


def _backward(grad: Tensor, codes: Tensor, factors: Tensor) -> Tensor:
    """(M, O) to (M, I)."""
    numbers = _numbers(codes)
    rows, by_row = numbers.rounded(grad * factors.t())
    return numbers.product(rows, codes).mul_(by_row).to(grad.dtype)


class _Resident(torch.autograd.Function):
    """By plain tensors, which torch.compile can trace."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, factors: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, factors)
        return _forward(x, codes, factors, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        codes, factors = ctx.saved_tensors
        return _backward(grads[0], codes, factors) if ctx.needs_input_grad[0] else None, None, None, None


class _Brought(torch.autograd.Function):
    """By what is asked for in the forward pass, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        stored = brought(weight)
        return _forward(x, stored.codes, stored.factors, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        stored = brought(ctx.weight)
        return _backward(grads[0], stored.codes, stored.factors), None, None


def scaled_linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """Returns x W^T + b in the dtype of x (…, I). `weight` is `RowScaled`, or stands for one (`row_scaled.brought`)."""
    rows = x.reshape(
        -1, x.shape[-1]
    )  # outside of the functions: torch.compile cannot trace new sizes inside of several
    if isinstance(weight, RowScaled):
        out = _Resident.apply(rows, weight.codes, weight.factors, bias)  # type: ignore[no-untyped-call]
    else:
        out = _Brought.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    made: Tensor = out.view(*x.shape[:-1], out.shape[-1])
    return made
