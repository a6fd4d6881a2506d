"""Merging LoRAs into a base model, and extracting a LoRA from the difference of two checkpoints."""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..base_model import Base
from ..errors import ModelFileError
from ..storage.atomic import whole_folder
from ..storage.tensor_file import TensorFile
from ..types import Progress
from .base_keys import base_slices, written_slices
from .extract import Difference, ExtractReport, Reader, extract, outside_energy
from .factors import KOHYA, PEFT, extended, new_dtype, write_lora
from .merge_base import BaseReport, Patch, WeightSlice, merge_file, plan
from .resize import Keep
from .text_encoder_keys import text_parts


def merge_into_base(
    base: Base, loras: Sequence[tuple[Path, float]], target: Path, progress: Progress, *, partly: bool = False
) -> BaseReport:
    """Write the base model with LoRAs merged in, given as (file, strength): a single file, or a diffusers folder, like the base.

    Raises ModelFileError if a LoRA does not fit (`partly` leaves out the modules that do not), RunError if writing fails.
    """
    texts = text_parts(base)
    known = {module: _with_prefix(slices, base.source.prefix) for module, slices in base_slices(base).items()}
    for part in texts:
        known |= part.slices
    patches, left_out = plan(loras, known, partly=partly)
    facts = {"loom.merged": json.dumps([[path.name, strength] for path, strength in loras])}
    if base.source.is_diffusers:
        changed_parts = [part for part in texts if any(key.startswith(part.mark) for key in patches)]
        with whole_folder(target) as folder:
            groups = [("", base.source.denoiser_files), *((part.mark, part.files) for part in changed_parts)]
            _copy_others(base, folder, [files for _, files in groups])
            rounding = list(_merge_files(base, folder, groups, patches, facts, progress))
    else:
        rounding = list(merge_file(base.source.path, target, "", patches, facts, progress))
    changed = [
        (value, key) for key, value in rounding if not math.isnan(value)
    ]  # two text encoders have keys of one name
    largest, worst = max(changed)
    return BaseReport(
        changed=len(changed),
        same=len(rounding) - len(changed),
        rounding=largest,
        worst=worst,
        left_out=tuple(left_out),
    )


def _with_prefix(slices: tuple[WeightSlice, ...], prefix: str) -> tuple[WeightSlice, ...]:
    """The slices by the keys of the file, in which the denoiser's keys have a prefix."""
    return tuple(replace(piece, key=prefix + piece.key) for piece in slices)


def _merge_files(
    base: Base,
    folder: Path,
    groups: Sequence[tuple[str, Sequence[Path]]],
    patches: Mapping[str, list[Patch]],
    facts: Mapping[str, str],
    progress: Progress,
) -> Iterator[tuple[str, float]]:
    """Write the files of each (mark, files) with the patches of the keys that begin with the mark. Yields as `merge_file`."""
    for mark, files in groups:
        mine = {key.removeprefix(mark): stack for key, stack in patches.items() if key.startswith(mark) and ("/" in key) == bool(mark)}  # fmt: skip
        for path in files:
            yield from merge_file(path, folder / path.relative_to(base.source.path), "", mine, facts, progress)


def _copy_others(base: Base, folder: Path, written: Sequence[Sequence[Path]]) -> None:
    """Copy the folder without the weights that are rewritten, and without other copies of them (.fp16), which would be outdated."""
    weights = {files[0].parent for files in written}

    def is_weight(directory: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(directory) in weights and name.endswith(".safetensors")]

    shutil.copytree(base.source.path, folder, ignore=is_weight, dirs_exist_ok=True)


def extract_lora(base: Base, tuned: Base, target: Path, keep: Keep, dtype: str, progress: Progress) -> ExtractReport:
    """Write the LoRA that approximates the difference from `base` to `tuned`; `keep` decides its rank.

    Raises ModelFileError if the two are not checkpoints of the same model in the same layout, or if they are equal.
    """
    old, new = (Reader(map(TensorFile, b.source.denoiser_files), b.source.prefix) for b in (base, tuned))
    if old.shapes() != new.shapes():
        odd = sorted(set(old.shapes().items()) ^ set(new.shapes().items()))
        raise ModelFileError(
            f"{base.source.path} and {tuned.source.path} differ in the names or sizes of {len(odd)} tensors, first {odd[0][0]}: "
            "use two checkpoints of the same model in the same layout"
        )
    difference, inside = Difference(old, new), written_slices(base)
    texts = list(_text_differences(base, tuned))

    def differences() -> Iterator[tuple[str, Tensor]]:
        every = [(key, partial(difference, *slices)) for key, slices in sorted(inside.items())] + texts
        for done, (key, call) in enumerate(every):
            yield key, call()
            progress(done + 1, len(every))

    style = KOHYA if next(iter(inside), "").startswith("lora_") else PEFT
    cuts = extract(differences(), keep, new_dtype(dtype, torch.bfloat16), style)
    if not cuts.written:
        raise ModelFileError(
            f"{base.source.path} and {tuned.source.path} are equal in all {len(inside) + len(texts)} modules"
        )
    metadata = {"modelspec.architecture": f"{base.variant}/lora", "ss_network_module": "networks.lora"}
    facts = {"base": base.source.path.name, "tuned": tuned.source.path.name, "keep": vars(keep)}
    write_lora(target, cuts.written, extended(metadata, cuts.written, "extract", facts))
    resized = cuts.report(0, target)
    total, rest = sum(cut.energy for cut in cuts.cuts.values()), outside_energy(old, inside, difference)
    ranks = [cut.new for cut in cuts.cuts.values()]
    return ExtractReport(
        modules=len(ranks),
        text_encoder=sum(key in cuts.cuts for key, _ in texts),
        same=len(cuts.zero),
        ranks=(min(ranks), max(ranks)),
        kept=resized.kept,
        worst=resized.worst,
        outside=rest / (total + rest),
        bytes=resized.bytes_after,
    )


def _text_differences(base: Base, tuned: Base) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Returns (module key, function that computes its difference) of the text encoders that both checkpoints have in the same layout."""
    for old, new in itertools.product(text_parts(base), text_parts(tuned)):
        if old.own == new.own and old.slices == new.slices:
            readers = [Reader(map(TensorFile, part.files), "") for part in (old, new)]
            difference = Difference(*readers)
            for key in sorted(old.own):
                yield key, partial(difference, *(replace(p, key=p.key.removeprefix(old.mark)) for p in old.slices[key]))
