"""2x2 patches of latents as tokens (Flux, Qwen-Image). L tokens, channel order (c, row in patch, column in patch)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(latents_BCHW: Tensor) -> Tensor:
    """Packs (B, C, H, W) into (B, H/2 * W/2, 4C). Raises ValueError if H or W is odd."""
    batch, channels, height, width = latents_BCHW.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents of {height} x {width} cannot be cut into 2x2 patches: use even sides")
    patches = latents_BCHW.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens_BLD: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for latents with `height` rows and `width` columns."""
    batch, _, depth = tokens_BLD.shape
    patches = tokens_BLD.reshape(batch, height // 2, width // 2, depth // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, depth // 4, height, width)


def position_ids(height: int, width: int, *, index: int = 0, top: int = 0, left: int = 0) -> Tensor:
    """Returns (H/2 * W/2, 3) rows [index, y, x] of the patches, for rotary embeddings."""
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 0] = index
    ids[..., 1] = torch.arange(top, top + height // 2)[:, None]
    ids[..., 2] = torch.arange(left, left + width // 2)[None, :]
    return ids.reshape(-1, 3)


def reference_places(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns (top, left) in patches of each reference of (rows, columns) of latents, laid side by side as Flux Kontext has them.

    Each goes to the right of those before, or below them, wherever the whole stays closer to a square (algorithms D7).
    """
    places = []
    bottom = right = 0
    for rows, columns in sizes:
        top, left = (0, right) if rows + bottom > columns + right else (bottom, 0)
        bottom, right = max(bottom, rows + top), max(right, columns + left)
        places.append((top // 2, left // 2))
    return places
