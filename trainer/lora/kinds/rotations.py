"""OFT (arXiv 2306.07280) and BOFT (arXiv 2311.06243) in LyCORIS' form: the rows of a weight are rotated, so that their angles and lengths stay.

A block holds A; Q = A - A^T, and R = (I + Q)(I - Q)^-1 is its Cayley transform. PEFT rotates the columns instead, and ComfyUI
would read its files as another change.
"""

from typing import cast

import torch
from torch import Tensor

from ...errors import ConfigError
from .own import OwnLayer, Values


def cayley(blocks: Tensor) -> Tensor:
    """Rotations (..., b, b) of blocks (..., b, b), in their dtype."""
    skew = blocks - blocks.transpose(-1, -2)
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return torch.linalg.solve(eye - skew, eye + skew)  # the two factors commute


class _Rotation(OwnLayer):
    """What both have in common. `network.rank` is the largest size of a block."""

    def rotated(self, turning: Tensor, rows: Tensor) -> Tensor:
        """Rotate the last dimension of a tensor."""
        raise NotImplementedError

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """R W x + b: the output is rotated, which is the same and needs no weight."""
        out, bias = self.without_bias(cast(Tensor, self.base_layer(x)))
        turning = cayley(values["oft_blocks"].float()).to(out.dtype)
        if self.is_conv:
            return self.rotated(turning, out.transpose(1, -1)).transpose(1, -1) + bias
        return self.rotated(turning, out) + bias

    def change(self, values: Values, base: Tensor) -> Tensor:
        """R W - W."""
        turning = cayley(values["oft_blocks"].to(base))
        rows = base.flatten(1).T
        return self.rotated(turning, rows).T.reshape(base.shape) - base

    def in_file(self, values: Values) -> dict[str, Tensor]:
        """With alpha 0: it is the limit that LyCORIS calls constraint, and loaders want it to be there."""
        return {**values, "alpha": torch.tensor(0.0)}

    def from_file(self, tensors: Values, alpha: float | None) -> dict[str, Tensor]:
        """As it is, if it has no limit. Raises ConfigError."""
        if alpha:
            raise ConfigError(
                "network.init_from has a constraint, which is not trained here: use a file with alpha = 0"
            )
        return dict(tensors)


class Oft(_Rotation):
    """Blocks of equal size on the diagonal (k, b, b); b is the largest divisor of the rows up to the rank."""

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The blocks."""
        rows = self.shape[0]
        size = next(size for size in range(min(rank, rows), 0, -1) if rows % size == 0)
        if size == 1:
            least = next((size for size in range(2, rows + 1) if rows % size == 0), rows)
            raise ConfigError(
                f"network.rank = {rank}: {path} has {rows} rows, which blocks of at most that size do not divide; use {least} or more, or name it in network.exclude_modules"
            )
        return {"oft_blocks": (rows // size, size, size)}

    def rotated(self, turning: Tensor, rows: Tensor) -> Tensor:
        """Each block by itself; loaders apply the transposed rotation to a weight's rows."""
        grouped = rows.reshape(*rows.shape[:-1], *turning.shape[:2])
        return torch.einsum("k n m, ... k n -> ... k m", turning, grouped).flatten(-2)


class Boft(_Rotation):
    """A butterfly of factors (m, k, b, b), the i-th of which joins rows that are 2^i b / 2 apart: with few numbers each row can reach each other.

    The number of blocks is a power of two; b is the largest even size up to the rank for which it is.
    """

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The blocks of all factors."""
        rows = self.shape[0]
        sizes = [size for size in range(2, rows + 1, 2) if rows % size == 0 and (rows // size).bit_count() == 1]
        fitting = [size for size in sizes if size <= rank]
        if not fitting:
            remedy = f"use {sizes[0]} or more, or " if sizes else ""
            raise ConfigError(
                f"network.rank = {rank}: {path} has {rows} rows, which are no 2^n blocks of an even size up to that; {remedy}name it in network.exclude_modules"
            )
        size = fitting[-1]
        count = rows // size
        return {"oft_blocks": (count.bit_length(), count, size, size)}

    def rotated(self, turning: Tensor, rows: Tensor) -> Tensor:
        """All factors, one after the other."""
        size = turning.shape[-1]
        for number, blocks in enumerate(turning):
            apart = 2**number * (size // 2)
            shape = rows.shape[:-1]
            rows = rows.reshape(*shape, -1, 2, apart).transpose(-1, -2).reshape(*shape, -1, size)
            rows = torch.einsum("k n m, ... k m -> ... k n", blocks, rows)
            rows = rows.reshape(*shape, -1, apart, 2).transpose(-1, -2).reshape(*shape, -1)
        return rows
