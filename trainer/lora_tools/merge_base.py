"""Merging LoRAs into the files of a base model, tensor by tensor, and verifying the written files.

Every tensor is changed and compared a few rows at a time. Besides the memory-mapped files, only one new tensor and the
adapter of one module are in memory.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError, RunError, did_you_mean
from ..lora.host_formula import (
    BIAS,
    EMBEDDINGS,
    changed_shape,
    changes_weight,
    needs_base,
    needs_whole_weight,
    refuse_broken,
    weight_change,
)
from ..lora.kinds.foreign import no_adapter, refuse_foreign
from ..storage.atomic import stream_tensors
from ..storage.tensor_file import FORMATS, TensorFile
from ..types import Progress
from .inspect import modules_of

SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".comfy_quant")
"""Suffixes of the tensors that belong to a weight stored with a scale."""
BLOCK = 2**19
"""Number of elements that are changed or compared at a time; rows are never divided."""
WeightSlices = Mapping[str, tuple["WeightSlice", ...]]
"""{module key: the slices of tensors that together hold all rows of its weight}."""


@dataclass(frozen=True)
class WeightSlice:
    """Rows of a tensor in a file that hold a module's weight, or a part of it."""

    key: str
    """The key of the tensor."""
    rows: tuple[int, int] | None = None
    """First row and end, if several modules share the tensor; None if all rows belong to the module."""
    of_module: tuple[int, int] | None = None
    """(index of the module's first row in this slice, rows of the module); None if the slice holds all rows of the module."""
    transposed: bool = False
    """The whole tensor is the module's weight with rows and columns exchanged."""

    def of(self, weight: Tensor) -> Tensor:
        """These rows of the tensor, as a view."""
        if self.transposed:
            return weight.T
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One module of one LoRA, applied to one slice of the base model. Its tensors are read when they are needed."""

    module: str
    target: WeightSlice
    file: TensorFile
    parts: Mapping[str, str]
    strength: float

    def open(self, tensor: Tensor) -> "OpenPatch":
        """Read the adapter, for the base model's tensor that it changes. Raises ModelFileError."""
        first, last = self.target.rows or (0, len(tensor))
        offset, total = self.target.of_module or (0, tensor.shape[1] if self.target.transposed else last - first)
        parts = self.file.gather(self.parts)
        refuse_broken({self.parts[name]: tensor for name, tensor in parts.items()}, str(self.file.path))
        whole = needs_whole_weight(parts, total) or self.target.transposed
        if whole and self.target.of_module:
            raise ModelFileError(
                f"{self.file.path}: {self.module} is of the kind {needs_base(parts)}, which needs its whole weight, and this base model has that in several tensors: merge into the single-file checkpoint of the base model"
            )
        return OpenPatch(patch=self, parts=parts, first=first, last=last, offset=offset, total=total, whole=whole)


@dataclass(frozen=True, kw_only=True)
class OpenPatch:
    """A patch whose adapter has been read."""

    patch: Patch
    parts: Mapping[str, Tensor]
    first: int
    last: int
    """First row and end of the rows of the tensor that it changes."""
    offset: int
    total: int
    """Index of this first row in the module, and the module's number of rows."""
    whole: bool
    """The change can only be computed from all rows of the weight."""

    def add(self, rows: Tensor, start: int) -> None:
        """Add the change to the tensor's rows start, start + 1, …, in place and in fp32. Raises ModelFileError if the sizes differ."""
        first, last = max(start, self.first), min(start + len(rows), self.last)
        if first < last:
            mine = rows[first - start : last - start]
            if self.patch.target.transposed:
                mine = mine.T
            span = (first - self.first + self.offset, self.total)
            try:
                mine += weight_change(self.parts, mine, self.patch.strength, span)
            except ModelFileError as error:
                raise ModelFileError(f"{self.patch.file.path}: {self.patch.module}: {error}") from error
            except RuntimeError as error:
                self._refuse_damaged()
                raise ModelFileError(
                    f"{self.patch.file.path}: {self.patch.module} does not fit a weight of {(self.total, *mine.shape[1:])}: it was made for a model of another size"
                ) from error

    def _refuse_damaged(self) -> None:
        """Raise ModelFileError for factors that do not fit each other, whatever the base model is."""
        try:
            changed_shape(self.parts)
        except ModelFileError as error:
            raise ModelFileError(f"{self.patch.file.path}: {self.patch.module}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class BaseReport:
    """The report on a merge into a base model."""

    changed: int
    """Number of tensors that were changed, each as ComfyUI would change it."""
    same: int
    """Number of tensors that are bit-identical to the base model's."""
    rounding: float
    """Largest |written change - exact change| / |exact change| of a tensor: the rounding error of the base model's dtype."""
    worst: str
    """The tensor with this error."""
    left_out: tuple[str, ...]
    """Modules of the LoRAs that the base model does not have."""

    def text(self) -> str:
        """The report as plain text."""
        lines = [
            f"{self.changed} tensors changed as ComfyUI would, {self.same} bit-identical to the base model",
            f"rounding to the base model's dtype costs at most {self.rounding:.1%} of the change, in {self.worst}",
        ]
        if self.left_out:
            lines.append(
                f"{len(self.left_out)} modules are not in this base model and were left out, first {self.left_out[0]}"
            )
        return "\n".join(lines)


_T5 = re.compile(r"SelfAttention|DenseReluDense")
"""Matches the names of the modules of a T5."""


def plan(
    loras: Sequence[tuple[Path, float]], slices: WeightSlices, *, partly: bool = False
) -> tuple[dict[str, list[Patch]], list[str]]:
    """Returns ({key of a tensor: patches in the order of the files}, modules that the base model does not have).

    Raises ModelFileError if there are such modules or tensors of an unknown kind, unless `partly`.
    """
    patches: dict[str, list[Patch]] = {}
    strange: list[str] = []
    for path, strength in loras:
        file = TensorFile(path)
        modules, unknown = modules_of(file)
        refuse_foreign(unknown, str(path))
        if not any(changes_weight(parts) or set(BIAS) & set(parts) for parts in modules.values()):
            raise ModelFileError(f"{path} {no_adapter(file.layout)}")
        strange += [key for key in unknown if not key.startswith(EMBEDDINGS)]
        for module, parts in sorted(modules.items()):
            if module not in slices:
                strange.append(module)
                continue
            for target, mine in _targets(slices[module], parts):
                patch = Patch(module=module, target=target, file=file, parts=mine, strength=strength)
                patches.setdefault(target.key, []).append(patch)
    if not patches or (strange and not partly):
        near = did_you_mean(strange[0], list(slices))
        named = " and ".join(str(path) for path, _ in loras)
        if t5 := [module for module in strange if _T5.search(module)]:
            raise ModelFileError(
                f"{len(t5)} modules of {named} belong to a T5 text encoder, first {t5[0]}: only denoisers and CLIP text encoders can be merged. --skip-missing merges the rest; keep the LoRA in a loader for its T5 part"
            )
        raise ModelFileError(
            f"{len(strange)} modules of {named} are not in this base model, first {strange[0]} ({near}). "
            "It was made for another model, or also changes text encoders that this base model does not have: --skip-missing merges the rest"
        )
    return patches, strange


def _targets(slices: tuple[WeightSlice, ...], parts: Mapping[str, str]) -> list[tuple[WeightSlice, Mapping[str, str]]]:
    """Returns [(rows of a tensor, the tensors of the LoRA that change them)]: those of the weight, and those of the bias.

    ComfyUI leaves out the change of a bias where a module is some rows of a weight.
    """
    found: list[tuple[WeightSlice, Mapping[str, str]]] = []
    of_weight = {name: key for name, key in parts.items() if name not in BIAS}
    if changes_weight(parts):
        found += [(piece, of_weight) for piece in slices]
    bias = next((name for name in BIAS if name in parts), None)
    if bias is not None and len(slices) == 1 and slices[0].rows is None and slices[0].key.endswith(".weight"):
        found.append((WeightSlice(slices[0].key.removesuffix(".weight") + ".bias"), {"diff": parts[bias]}))
    return found


@torch.no_grad()
def patched(stored: Tensor, patches: Sequence[Patch]) -> Tensor:
    """A tensor of the base model with all patches, computed in fp32 and rounded to its dtype."""
    new = torch.empty_like(stored)
    for start, rows in patched_rows(stored, patches):
        new[start : start + len(rows)] = rows
    return new


def patched_rows(stored: Tensor, patches: Sequence[Patch]) -> Iterator[tuple[int, Tensor]]:
    """Returns (index of the first row, rows in fp32 with all patches), a few rows at a time."""
    opened = [patch.open(stored) for patch in patches]
    size = len(stored) if any(patch.whole for patch in opened) else rows_at_once(stored)
    for start in range(0, len(stored), size):
        rows = stored[start : start + size].to(torch.float32, copy=True)
        for patch in opened:
            patch.add(rows, start)
        yield start, rows


def rows_at_once(tensor: Tensor) -> int:
    """Number of rows of a tensor that are changed or compared at a time."""
    return max(1, BLOCK // max(1, tensor[:1].numel()))


def merge_file(
    source: Path,
    target: Path,
    prefix: str,
    patches: Mapping[str, list[Patch]],
    metadata: Mapping[str, str],
    progress: Progress = lambda done, total: None,
) -> Iterator[tuple[str, float]]:
    """Write one file of a base model with patches, then read it back and yield (key, rounding error or nan if unchanged).

    Raises ModelFileError for weights that cannot be changed, RunError if the written file is wrong.
    """
    base = TensorFile(source)
    mine = {prefix + key: patch for key, patch in patches.items() if prefix + key in base.layout}
    _check_formats(base, mine)
    turns, count = itertools.count(1), 2 * len(base.layout)  # every tensor is written, then compared

    def produce(key: str) -> Tensor:
        progress(next(turns), count)
        return patched(base.get(key), mine[key]) if key in mine else base.get(key)

    stream_tensors(target, base.layout, produce, {**base.metadata, **metadata})
    written = TensorFile(target)
    for key in base.layout:
        yield key, compare(base.get(key), written.get(key), mine.get(key, ()), key)
        progress(next(turns), count)


def _check_formats(base: TensorFile, patches: Mapping[str, list[Patch]]) -> None:
    """Raise ModelFileError for weights whose dtype a LoRA cannot be merged into."""
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
    """The rounding error |(after - before) - change| / |change| of a tensor; nan for one without a patch.

    Raises RunError if a tensor without a patch differs in any bit, or a patched one by more than its rounding.
    """
    if not patches:
        if not torch.equal(_bits(before), _bits(after)):
            raise RunError(
                f"{key} should be unchanged but differs in the written file: check the disk, and write the file again"
            )
        return float("nan")
    off = change = 0.0
    limits = torch.finfo(before.dtype)
    for start, expected in patched_rows(before, patches):
        rows = slice(start, start + len(expected))
        difference = after[rows].to(torch.float32, copy=True).sub_(expected)
        if not (difference.abs() <= expected.abs() * limits.eps + limits.tiny).all():
            raise RunError(
                f"{key} in the written file differs from the computed weight: check the disk, and write the file again"
            )
        off += difference.double().square().sum().item()
        change += expected.sub_(before[rows]).double().square().sum().item()
    return float((off / max(change, 1e-60)) ** 0.5)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
