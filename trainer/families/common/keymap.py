"""Original key names to diffusers key names without copying: a fused tensor becomes views of its rows.

A family writes its map once, as {diffusers key: Part}; loading, parity tests and key conversion all read it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ModelFileError

WEIGHT_AND_BIAS = (".weight", ".bias")


@dataclass(frozen=True)
class Part:
    """Where a diffusers tensor lives in the original file."""

    native: str
    rows: tuple[int, int] | None = None
    """First and last + 1 row of a fused tensor."""
    swap_halves: bool = False
    """The halves along the rows change places (shift and scale of the last modulation). Needs a small copy."""
    flatten: bool = False
    """A 1x1 convolution that diffusers keeps as a Linear."""
    table: int | None = None
    """Rows of a table that the original file holds as one vector."""


KeyMap = dict[str, Part]


def rename(
    pairs: Iterable[tuple[str, str]],
    suffixes: tuple[str, ...] = WEIGHT_AND_BIAS,
    *,
    swap_halves: bool = False,
    flatten: bool = False,
) -> KeyMap:
    """Returns {diffusers + suffix: Part(native + suffix)} for (native, diffusers) module names."""
    return {
        diffusers + suffix: Part(native + suffix, swap_halves=swap_halves, flatten=flatten and suffix == ".weight")
        for native, diffusers in pairs
        for suffix in suffixes
    }


def split_rows(
    native: str, diffusers: Iterable[str], sizes: Iterable[int], suffixes: tuple[str, ...] = WEIGHT_AND_BIAS
) -> KeyMap:
    """Consecutive rows of one fused module as several modules."""
    parts: KeyMap = {}
    start = 0
    for name, size in zip(diffusers, sizes, strict=True):
        for suffix in suffixes:
            parts[name + suffix] = Part(native + suffix, rows=(start, start + size))
        start += size
    return parts


def to_diffusers(native: Mapping[str, Tensor], keymap: KeyMap, optional: Iterable[str] = ()) -> dict[str, Tensor]:
    """The diffusers state dict as views of the original tensors. Raises ModelFileError on missing or unexpected keys.

    Keys that end in .bias may be absent; `optional` names original keys that may be present unread.
    """
    wanted = {part.native for part in keymap.values()}
    missing = sorted(key for key in wanted - native.keys() if not key.endswith(".bias"))
    unexpected = sorted(native.keys() - wanted - set(optional))
    if missing or unexpected:
        raise ModelFileError(
            f"the file does not fit its family: {listing('missing', missing)}{listing('unexpected', unexpected)}"
        )
    return {key: _take(native[part.native], part) for key, part in keymap.items() if part.native in native}


def to_native(tensors: Mapping[str, Tensor], keymap: KeyMap) -> dict[str, Tensor]:
    """The original state dict of a diffusers one: rows of a fused tensor side by side again. Copies what it fuses or swaps."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for key, part in keymap.items():
        if key in tensors:
            piece = torch.cat(tensors[key].chunk(2)[::-1]) if part.swap_halves else tensors[key]
            piece = piece.flatten() if part.table else piece
            pieces.setdefault(part.native, []).append((part.rows[0] if part.rows else 0, piece))
    ordered = {key: [piece for _, piece in sorted(rows, key=lambda row: row[0])] for key, rows in pieces.items()}
    return {key: rows[0] if len(rows) == 1 else torch.cat(rows) for key, rows in ordered.items()}


def _take(tensor: Tensor, part: Part) -> Tensor:
    if part.rows is not None:
        tensor = tensor[part.rows[0] : part.rows[1]]
    if part.swap_halves:
        tensor = torch.cat(tensor.chunk(2)[::-1])
    if part.flatten:
        tensor = tensor.reshape(tensor.shape[0], -1)
    if part.table:
        tensor = tensor.reshape(part.table, -1)
    return tensor


def listing(word: str, keys: list[str], most: int = 6) -> str:
    """ "3 missing (a, b, c); " for an error message, nothing for an empty list."""
    if not keys:
        return ""
    shown = ", ".join(keys[:most]) + (", …" if len(keys) > most else "")
    return f"{len(keys)} {word} ({shown}); "


def count_blocks(keys: Iterable[str], stem: str) -> int:
    """Number of blocks `stem.0`, `stem.1`, … among the keys."""
    prefix = stem + "."
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
