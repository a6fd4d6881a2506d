"""Weights in 8 bits with a factor for each row, and the products that devices have for such numbers.

x W^T = s_x (q_x q_W^T) s_W: the rows of x are rounded to 8 bits when they come, the product is made of 8-bit numbers, and the factors are
multiplied in fp32 afterwards. The same for the gradient dX = dY W, where s_W goes on dY before its rows are rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .packed import PackedTensor

LEAST_ROWS = 17
"""torch._int_mm takes no fewer on CUDA; what has fewer (modulation of a single image) is no work worth rounding for."""


@dataclass(frozen=True)
class Numbers:
    """A kind of 8-bit numbers and their product."""

    dtype: torch.dtype
    multiple: int
    """Rows and columns of a weight have to be multiples of it on CUDA."""
    product: Callable[[Tensor, Tensor], Tensor]
    """(M, K) by (K, N) of 8-bit numbers, to fp32."""

    def fits(self, weight: Tensor) -> bool:
        """Whether devices can multiply by a weight (O, I) and by its transpose."""
        return weight.ndim == 2 and all(side and side % self.multiple == 0 for side in weight.shape)

    def rounded(self, x_MK: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (codes (M, K), factors (M, 1) fp32) of rows in any floating dtype: the largest of a row becomes the largest code."""
        is_integer = self.dtype == torch.int8
        # Asked for here, not kept: torch.compile takes a number that is kept for one that may change.
        largest = torch.iinfo(self.dtype).max if is_integer else torch.finfo(self.dtype).max
        factors = x_MK.abs().amax(-1, keepdim=True).float().div_(largest).clamp_min_(1e-30)  # rows of zeros
        scaled = x_MK / factors
        codes = scaled.round_() if is_integer else scaled
        return codes.to(self.dtype), factors


def _int8(first: Tensor, second: Tensor) -> Tensor:
    return torch._int_mm(first, second).float()


def _fp8(first: Tensor, second: Tensor) -> Tensor:
    one = torch.ones((), device=first.device)
    columns = second if second.stride(0) == 1 else second.t().contiguous().t()  # cuBLASLt's layout
    return torch._scaled_mm(first, columns, one, one, out_dtype=torch.float32)


NUMBERS = {
    "int8": Numbers(torch.int8, 8, _int8),
    "fp8": Numbers(torch.float8_e4m3fn, 16, _fp8),
}
"""{value of model.matmul: numbers}."""


class RowScaled(PackedTensor):
    """A weight (O, I): `codes` (O, I), int8 or float8_e4m3fn, and `factors` (O, 1) or, for all rows, (1, 1), fp32."""

    @property
    def numbers(self) -> Numbers:
        """Their kind."""
        return next(one for one in NUMBERS.values() if one.dtype == self.codes.dtype)

    def dequantize(self) -> Tensor:
        """The weight as plain numbers of its dtype, rounded once; not kept."""
        return self.codes.to(self.dtype).mul_(self.factors)

    def rows(self, rows: slice) -> "RowScaled":
        """Some of its rows; nothing is copied."""
        codes = self.codes[rows]
        factors = self.factors if self.factors.numel() == 1 else self.factors[rows]
        return RowScaled(codes, factors, codes.shape, self.dtype)


def to_row_scaled(weight: Tensor, numbers: Numbers) -> RowScaled:
    """Round a weight (O, I), fp32, bf16 or fp16, on its device. It is unpacked to the same dtype."""
    codes, factors = numbers.rounded(weight.detach())
    return RowScaled(codes, factors, weight.shape, weight.dtype)


def is_row_scaled(weight: Any) -> bool:
    """Whether a weight, or what stands for one that is kept elsewhere or for some of its rows, is `RowScaled`. Nothing is brought."""
    return isinstance(getattr(weight, "home", weight), RowScaled)


def brought(weight: Any) -> RowScaled:
    """Such a weight on the device. Used before the next one is asked for."""
    found: RowScaled = weight if isinstance(weight, RowScaled) else weight.stored()
    return found
