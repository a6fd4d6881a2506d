"""Weights in nf4, the 4-bit numbers of QLoRA (arXiv 2305.14314), packed and unpacked by bitsandbytes.

64 weights share one factor, their largest magnitude in fp32, so that a weight takes 4.5 bits. What bitsandbytes calls a
Linear4bit is not used: a streamed weight is asked for by `dequantize`, and on some CPUs it rounds factors
and products to bfloat16.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from torch._ops import OpOverload

BLOCK = 64
"""Weights that share a factor."""
KIND = "nf4"
Context = tuple[tuple[int, ...], torch.dtype]
"""(shape, dtype that it is unpacked to)."""


class Nf4Tensor(Tensor):
    """A packed weight: `codes` (n / 2, 1) uint8, two numbers in a byte, and `factors` (n / 64,) fp32, for n numbers with those that
    fill the last block. It is moved and copied as it is; what else is done to it, is done to plain numbers."""

    codes: Tensor
    factors: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, factors: Tensor, shape: Sequence[int], dtype: torch.dtype) -> "Nf4Tensor":
        made: Nf4Tensor = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=codes.device)
        made.codes, made.factors = codes, factors
        return made

    def dequantize(self) -> Tensor:
        """The weight as plain numbers of its dtype, not kept."""
        if self.codes.is_meta:
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        count = self.numel()
        # As rows of whole blocks: for rows of an odd length bitsandbytes has no kernel on a CPU.
        rows = (self.factors.numel(), BLOCK)
        state = QuantState(self.factors, shape=rows, blocksize=BLOCK, quant_type=KIND, dtype=self.dtype)
        plain: Tensor = dequantize_4bit(self.codes, state)
        return plain.view(-1)[:count].view(self.shape)

    def __tensor_flatten__(self) -> tuple[list[str], Context]:
        return ["codes", "factors"], (tuple(self.shape), self.dtype)

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, Tensor], context: Context, size: object, stride: object
    ) -> "Nf4Tensor":
        return Nf4Tensor(inner["codes"], inner["factors"], *context)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Nf4Tensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: "OpOverload[..., Any]",
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _MOVES:
            plain, named = tree_map_only(Nf4Tensor, Nf4Tensor.dequantize, (args, given))
            return func(*plain, **named)
        one: Nf4Tensor = args[0]
        dtype = given.pop("dtype", None) or one.dtype
        given.pop("layout", None)
        parts = [func(part, *args[1:], **given) for part in (one.codes, one.factors)]
        made = Nf4Tensor(parts[0], parts[1], one.shape, dtype)
        return return_and_correct_aliasing(func, args, dict(kwargs or {}), made)  # type: ignore[no-untyped-call]


_ATEN = torch.ops.aten
_MOVES = (_ATEN.detach.default, _ATEN._to_copy.default, _ATEN.clone.default, _ATEN.alias.default)
"""What is done to the parts."""


def to_nf4(weight: Tensor) -> Nf4Tensor:
    """Pack a weight of any shape, fp32, bf16 or fp16, on its device. It is unpacked to the same dtype."""
    from bitsandbytes.functional import quantize_4bit

    flat = weight.detach().reshape(-1)
    short = -flat.numel() % BLOCK
    filled = torch.nn.functional.pad(flat, (0, short)) if short else flat.contiguous()
    codes, state = quantize_4bit(filled, blocksize=BLOCK, quant_type=KIND)
    return Nf4Tensor(codes, state.absmax, weight.shape, weight.dtype)
