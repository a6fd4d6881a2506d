"""A frozen Linear whose products, forward and to the input's gradient, are made of 8-bit numbers. Nothing is saved but the weight itself."""

from typing import Any

import torch
from torch import Tensor

from .row_scaled import LEAST_ROWS, brought


def has_rows(x: Tensor) -> bool:
    """Whether x (…, I) has enough rows for the product of 8-bit numbers."""
    return x.numel() >= LEAST_ROWS * x.shape[-1]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # it is frozen, and asked for again
        stored = brought(weight)
        codes, factors = stored.numbers.rounded(x.reshape(-1, x.shape[-1]))
        product = stored.numbers.product(codes, stored.codes.t()).mul_(factors).mul_(stored.factors.t())
        if bias is not None:
            product.add_(bias)
        out = x.new_empty(*x.shape[:-1], product.shape[-1])  # no view: networks add to it in place
        out.view(product.shape).copy_(product)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        grad, stored = grads[0], brought(ctx.weight)
        scaled = grad.reshape(-1, grad.shape[-1]) * stored.factors.t()
        codes, factors = stored.numbers.rounded(scaled)
        product = stored.numbers.product(codes, stored.codes).mul_(factors)
        return product.to(grad.dtype).view(*grad.shape[:-1], product.shape[-1]), None, None


def scaled_linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """Returns x W^T + b in the dtype of x (…, I). `weight` is `RowScaled`, or stands for one (`row_scaled.brought`)."""
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out
