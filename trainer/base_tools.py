"""LoRAs and whole checkpoints: merging the one into the other, and taking it out again."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .base_model import Base
from .errors import ModelFileError
from .files import whole_folder
from .lora.extract import Difference, ExtractReport, Reader, extract, outside_energy
from .lora.factors import KOHYA, PEFT, extended, new_dtype, write_lora
from .lora.merge_base import BaseReport, Patch, merge_file, plan
from .lora.resize import Keep
from .lora_places import own_places, places
from .tensor_files import TensorFile

Progress = Callable[[int, int], None]


def merge_into_base(
    base: Base, loras: Sequence[tuple[Path, float]], target: Path, progress: Progress, *, partly: bool = False
) -> BaseReport:
    """Write the base with LoRAs merged in: a file for a file, a diffusers folder for a folder.

    Raises ModelFileError if a LoRA does not fit (`partly` leaves out the modules that do not), RunError on writing.
    """
    patches, left_out = plan(loras, places(base), partly=partly)
    facts = json.dumps([[path.name, strength] for path, strength in loras])
    if base.source.is_diffusers:
        with whole_folder(target) as folder:
            _copy_others(base, folder)
            rounding = list(_merge_files(base, folder, patches, {"loom.merged": facts}, progress))
    else:
        rounding = list(
            merge_file(base.source.path, target, base.source.prefix, patches, {"loom.merged": facts}, progress)
        )
    changed = {key: value for key, value in rounding if not math.isnan(value)}
    worst = max(changed, key=lambda key: changed[key])
    return BaseReport(
        changed=len(changed),
        same=len(rounding) - len(changed),
        rounding=changed[worst],
        worst=worst,
        left_out=tuple(left_out),
    )


def _merge_files(
    base: Base, folder: Path, patches: Mapping[str, list[Patch]], facts: Mapping[str, str], progress: Progress
) -> Iterator[tuple[str, float]]:
    for path in base.source.denoiser_files:
        target = folder / path.relative_to(base.source.path)
        yield from merge_file(path, target, base.source.prefix, patches, facts, progress)


def _copy_others(base: Base, folder: Path) -> None:
    """Everything but the network's weights, of which no stale copy (.fp16) may stay."""
    weights = base.source.denoiser_files[0].parent

    def is_weight(directory: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(directory) == weights and name.endswith(".safetensors")]

    shutil.copytree(base.source.path, folder, ignore=is_weight, dirs_exist_ok=True)


def extract_lora(base: Base, tuned: Base, target: Path, keep: Keep, dtype: str, progress: Progress) -> ExtractReport:
    """Write the LoRA that takes `base` to `tuned`, as nearly as `keep` allows.

    Raises ModelFileError if the two are not checkpoints of the same network in the same layout, or are equal.
    """
    old, new = (Reader(map(TensorFile, b.source.denoiser_files), b.source.prefix) for b in (base, tuned))
    if old.shapes() != new.shapes():
        odd = sorted(set(old.shapes().items()) ^ set(new.shapes().items()))
        raise ModelFileError(
            f"{base.source.path} and {tuned.source.path} differ in {len(odd)} tensors' names or sizes, first {odd[0][0]}: "
            "give two checkpoints of one model in one layout"
        )
    difference, inside = Difference(old, new), own_places(base)

    def differences() -> Iterator[tuple[str, Tensor]]:
        for done, (key, place) in enumerate(sorted(inside.items())):
            yield key, difference(*place)
            progress(done + 1, len(inside))

    style = KOHYA if next(iter(inside), "").startswith("lora_") else PEFT
    cuts = extract(differences(), keep, new_dtype(dtype, torch.bfloat16), style)
    if not cuts.written:
        raise ModelFileError(f"{base.source.path} and {tuned.source.path} are equal in all {len(inside)} modules")
    metadata = {"modelspec.architecture": f"{base.variant}/lora", "ss_network_module": "networks.lora"}
    facts = {"base": base.source.path.name, "tuned": tuned.source.path.name, "keep": vars(keep)}
    write_lora(target, cuts.written, extended(metadata, cuts.written, "extract", facts))
    resized = cuts.report(0, target)
    total, rest = sum(cut.energy for cut in cuts.cuts.values()), outside_energy(old, inside, difference)
    ranks = [cut.new for cut in cuts.cuts.values()]
    return ExtractReport(
        modules=len(ranks),
        same=len(cuts.zero),
        ranks=(min(ranks), max(ranks)),
        kept=resized.kept,
        worst=resized.worst,
        outside=rest / (total + rest),
        bytes=resized.bytes_after,
    )
