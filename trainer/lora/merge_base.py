"""LoRAs merged into a base checkpoint, tensor by tensor, then compared with what was there before.

A few fp32 copies of the largest tensor (three to seven were measured) are in memory at once, never a whole checkpoint.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ModelFileError, RunError, did_you_mean
from ..files import stream_tensors
from ..tensor_files import FORMATS, TensorFile
from .host_formula import weight_change
from .tools import modules_of

SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".comfy_quant")
"""Tensors beside a weight that is stored as scaled numbers."""
ROWS = 128
"""Rows that are checked at once."""


@dataclass(frozen=True)
class Place:
    """A module's weight in a file: the tensor, and which of its rows if several modules share it."""

    key: str
    rows: tuple[int, int] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """A view."""
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One module of one LoRA, to be read when it is needed."""

    module: str
    place: Place
    file: TensorFile
    parts: Mapping[str, str]
    strength: float

    def change(self, base: Tensor) -> Tensor:
        """What the host adds to these rows, fp32."""
        return weight_change(self.file.gather(self.parts), base, self.strength)


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


def plan(
    loras: Sequence[tuple[Path, float]], places: Mapping[str, Place], *, partly: bool = False
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
            else:
                patch = Patch(module=module, place=places[module], file=file, parts=parts, strength=strength)
                patches.setdefault(patch.place.key, []).append(patch)
    if not patches or (strange and not partly):
        near = did_you_mean(strange[0], list(places)) if strange else "the files hold no LoRA"
        raise ModelFileError(
            f"{len(strange)} modules of the LoRA are not in this base, first {strange[0] if strange else 'none'} ({near}). "
            "It was made for another model, or also changes text encoders: --partly merges the rest"
        )
    return patches, strange


@torch.no_grad()
def patched(stored: Tensor, patches: Sequence[Patch]) -> Tensor:
    """The base's tensor with all patches, computed in fp32, in the base's number format."""
    weight = stored.to(torch.float32, copy=True)
    for patch in patches:
        rows = patch.place.of(weight)
        rows += _fitting(patch, rows)
    return weight.to(stored.dtype)


def _fitting(patch: Patch, rows: Tensor) -> Tensor:
    try:
        return patch.change(rows)
    except RuntimeError as error:
        raise ModelFileError(
            f"{patch.file.path}: {patch.module} does not fit a weight of {tuple(rows.shape)}: it was made for another model"
        ) from error


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
    expected = before.to(torch.float32, copy=True)
    for patch in patches:
        rows = patch.place.of(expected)
        rows += patch.change(rows)
    off, limits = after.to(torch.float32, copy=True).sub_(expected), torch.finfo(before.dtype)
    for part, whole in zip(torch.split(off, ROWS), torch.split(expected, ROWS), strict=True):
        if not (part.abs() <= whole.abs() * limits.eps + limits.tiny).all():
            raise RunError(f"{key} in the written file is not what the LoRA makes of it: is the disk healthy?")
    change = expected.sub_(before)
    return float(off.norm() / change.norm().clamp_min(1e-30))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
