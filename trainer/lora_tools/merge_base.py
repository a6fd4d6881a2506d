"""LoRAs merged into a base checkpoint, tensor by tensor, then compared with what was there before.

Every tensor is changed and compared a few rows at a time: besides the mapped files, one new tensor is in memory at once, and
the adapter of the module at hand.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError, RunError, did_you_mean
from ..lora.host_formula import needs_whole_weight, weight_change
from ..storage.atomic import stream_tensors
from ..storage.tensor_file import FORMATS, TensorFile
from .inspect import modules_of

SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".comfy_quant")
"""Tensors beside a weight that is stored as scaled numbers."""
BLOCK = 2**19
"""Numbers of a tensor that are changed or compared at once; its rows are never cut."""
Places = Mapping[str, tuple["WeightSlice", ...]]
"""{module key: where its weight is}: one place, or several that together hold all of its rows."""


@dataclass(frozen=True)
class WeightSlice:
    """(A part of) a module's weight in a file: the tensor, and which of its rows if several modules share it."""

    key: str
    rows: tuple[int, int] | None = None
    of_module: tuple[int, int] | None = None
    """First row of the module that lies here, and how many it has in all; None if all of its rows do."""

    def of(self, weight: Tensor) -> Tensor:
        """A view."""
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One module of one LoRA at one place, to be read when it is needed."""

    module: str
    place: WeightSlice
    file: TensorFile
    parts: Mapping[str, str]
    strength: float

    def open(self, tensor: Tensor) -> "OpenPatch":
        """For the base's tensor that it changes."""
        first, last = self.place.rows or (0, len(tensor))
        offset, total = self.place.of_module or (0, last - first)
        parts = self.file.gather(self.parts)
        whole = needs_whole_weight(parts, total)
        if whole and self.place.of_module:
            raise ModelFileError(
                f"{self.file.path}: {self.module} is a DoRA over input columns, and this base keeps its weight in several tensors: merge into the base's single file"
            )
        return OpenPatch(patch=self, parts=parts, first=first, last=last, offset=offset, total=total, whole=whole)


@dataclass(frozen=True, kw_only=True)
class OpenPatch:
    """A patch with its adapter read."""

    patch: Patch
    parts: Mapping[str, Tensor]
    first: int
    last: int
    """Rows of the tensor that it changes."""
    offset: int
    total: int
    """Which row of the module that first one is, of how many."""
    whole: bool
    """Its change cannot be computed without all of the weight's rows."""

    def add(self, rows: Tensor, start: int) -> None:
        """Add to rows start, start + 1, … of the tensor what the host adds to them. fp32, in place."""
        first, last = max(start, self.first), min(start + len(rows), self.last)
        if first < last:
            mine = rows[first - start : last - start]
            span = (first - self.first + self.offset, self.total)
            try:
                mine += weight_change(self.parts, mine, self.patch.strength, span)
            except RuntimeError as error:
                raise ModelFileError(
                    f"{self.patch.file.path}: {self.patch.module} does not fit a weight of {(self.total, *rows.shape[1:])}: it was made for another model"
                ) from error


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    changed: int
    """Tensors that differ from the base's, each by what the host would compute."""
    same: int
    """Tensors that are equal bit for bit."""
    rounding: float
    """Largest |written change - exact change| / |exact change|: what the base's number format costs."""
    worst: str
    """Tensor where that is."""
    left_out: tuple[str, ...]
    """Modules of the LoRAs that are not in this base."""

    def text(self) -> str:
        lines = [
            f"{self.changed} tensors changed as ComfyUI would, {self.same} equal to the base bit for bit",
            f"rounding to the base's number format costs {self.rounding:.1%} of the change at most, in {self.worst}",
        ]
        if self.left_out:
            lines.append(f"{len(self.left_out)} modules are not in this base and left out, first {self.left_out[0]}")
        return "\n".join(lines)


_T5 = re.compile(r"SelfAttention|DenseReluDense")
"""In the names of a T5's modules, whatever comes before them."""


def plan(
    loras: Sequence[tuple[Path, float]], places: Places, *, partly: bool = False
) -> tuple[dict[str, list[Patch]], list[str]]:
    """({tensor key: patches in the order of the files}, modules that are not in the base).

    Raises ModelFileError if there are such modules, unless `partly`, and for tensors of an unknown kind.
    """
    patches: dict[str, list[Patch]] = {}
    strange: list[str] = []
    for path, strength in loras:
        file = TensorFile(path)
        modules, unknown = modules_of(file)
        strange += unknown
        for module, parts in sorted(modules.items()):
            if module not in places:
                strange.append(module)
            for place in places.get(module, ()):
                patch = Patch(module=module, place=place, file=file, parts=parts, strength=strength)
                patches.setdefault(place.key, []).append(patch)
    if not patches or (strange and not partly):
        near = did_you_mean(strange[0], list(places)) if strange else "the files hold no LoRA"
        if t5 := [module for module in strange if _T5.search(module)]:
            raise ModelFileError(
                f"{len(t5)} modules of the LoRA belong to a T5 text encoder, first {t5[0]}: only networks and CLIP text encoders are merged here. --skip-missing merges the rest; keep the LoRA in a loader for its T5 part"
            )
        raise ModelFileError(
            f"{len(strange)} modules of the LoRA are not in this base, first {strange[0] if strange else 'none'} ({near}). "
            "It was made for another model, or also changes text encoders that this base does not have: --skip-missing merges the rest"
        )
    return patches, strange


@torch.no_grad()
def patched(stored: Tensor, patches: Sequence[Patch]) -> Tensor:
    """The base's tensor with all patches, computed in fp32, in the base's number format."""
    new = torch.empty_like(stored)
    for start, rows in patched_rows(stored, patches):
        new[start : start + len(rows)] = rows
    return new


def patched_rows(stored: Tensor, patches: Sequence[Patch]) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in fp32 with all patches), a few rows at a time."""
    opened = [patch.open(stored) for patch in patches]
    size = len(stored) if any(patch.whole for patch in opened) else rows_at_once(stored)
    for start in range(0, len(stored), size):
        rows = stored[start : start + size].to(torch.float32, copy=True)
        for patch in opened:
            patch.add(rows, start)
        yield start, rows


def rows_at_once(tensor: Tensor) -> int:
    return max(1, BLOCK // max(1, tensor[:1].numel()))


def merge_file(
    source: Path,
    target: Path,
    prefix: str,
    patches: Mapping[str, list[Patch]],
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[str, float]]:
    """Write one file of a base, then yield (tensor, rounding, or nan if unchanged) as it is found on disk.

    Raises ModelFileError for weights that cannot be changed, RunError if the written file is not what it should be.
    """
    base = TensorFile(source)
    mine = {prefix + key: patch for key, patch in patches.items() if prefix + key in base.layout}
    _check_formats(base, mine)
    turns, count = itertools.count(1), 2 * len(base.layout)  # written, then compared

    def produce(key: str) -> Tensor:
        progress(next(turns), count)
        return patched(base.get(key), mine[key]) if key in mine else base.get(key)

    stream_tensors(target, base.layout, produce, {**base.metadata, **metadata})
    written = TensorFile(target)
    for key in base.layout:
        yield key, compare(base.get(key), written.get(key), mine.get(key, ()), key)
        progress(next(turns), count)


def _check_formats(base: TensorFile, patches: Mapping[str, list[Patch]]) -> None:
    kinds = {kind: dtype for dtype, kind in FORMATS.items()}
    for key in patches:
        dtype = kinds.get(base.layout[key][0])
        scaled = any(key.removesuffix(".weight") + scale in base.layout for scale in SCALES)
        if dtype is None or not dtype.is_floating_point or scaled:
            how = "with a scale" if scaled else f"as {base.layout[key][0]}"
            raise ModelFileError(
                f"{base.path}: {key} is stored {how}, so a LoRA cannot be merged into it: use the model's bf16 or fp16 file"
            )


@torch.no_grad()
def compare(before: Tensor, after: Tensor, patches: Sequence[Patch], key: str) -> float:
    """|(after - before) - change| / |change|, nan for a tensor without a patch.

    Raises RunError if an unpatched tensor differs in a bit, or a patched one by more than its rounding.
    """
    if not patches:
        if not torch.equal(_bits(before), _bits(after)):
            raise RunError(f"{key} was to stay as it is but differs in the written file: is the disk healthy?")
        return float("nan")
    off = change = 0.0
    limits = torch.finfo(before.dtype)
    for start, expected in patched_rows(before, patches):
        rows = slice(start, start + len(expected))
        difference = after[rows].to(torch.float32, copy=True).sub_(expected)
        if not (difference.abs() <= expected.abs() * limits.eps + limits.tiny).all():
            raise RunError(f"{key} in the written file is not what the LoRA makes of it: is the disk healthy?")
        off += difference.double().square().sum().item()
        change += expected.sub_(before[rows]).double().square().sum().item()
    return float((off / max(change, 1e-60)) ** 0.5)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
