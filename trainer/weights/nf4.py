"""Weights in nf4, the 4-bit numbers of QLoRA (arXiv 2305.14314), packed and unpacked by bitsandbytes.

64 weights share one factor, their largest magnitude in fp32, so that a weight takes 4.5 bits. What bitsandbytes calls a
Linear4bit is not used: a streamed weight is asked for by `dequantize`, and on some CPUs it rounds factors
and products to bfloat16.
"""

import torch
from torch import Tensor

from .packing.packed import PackedTensor

BLOCK = 64
"""Weights that share a factor."""
KIND = "nf4"


class Nf4Tensor(PackedTensor):
    """A packed weight: `codes` (n / 2, 1) uint8, two numbers in a byte, and `factors` (n / 64,) fp32, for n numbers with those that
    fill the last block."""

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


def to_nf4(weight: Tensor) -> Nf4Tensor:
    """Pack a weight of any shape, fp32, bf16 or fp16, on its device. It is unpacked to the same dtype."""
    from bitsandbytes.functional import quantize_4bit

    flat = weight.detach().reshape(-1)
    short = -flat.numel() % BLOCK
    filled = torch.nn.functional.pad(flat, (0, short)) if short else flat.contiguous()
    codes, state = quantize_4bit(filled, blocksize=BLOCK, quant_type=KIND)
    return Nf4Tensor(codes, state.absmax, weight.shape, weight.dtype)
