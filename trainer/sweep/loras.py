"""The LoRA files that a sweep compares: found, read, labelled, and checked before the first cell."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..base_model import Base
from ..errors import ModelFileError, RunError
from ..families.common.lora_names import is_text_encoder
from ..lora.host_formula import refuse_broken
from ..lora.metadata import trained_steps
from ..lora.patch import check_shapes
from ..lora_tools.layouts import Formats
from ..runs.run_folder import RunFolder
from ..storage.fingerprint import tensors_digest
from ..storage.tensor_file import TensorFile, damage_of, read_lora
from .cells import SweptLora


def run_loras(run: RunFolder, remedy: str) -> tuple[SweptLora, ...]:
    """The LoRA files that a run has saved at its checkpoints, oldest first. Raises RunError with the remedy without any, and
    ModelFileError for one that is damaged."""
    if run.is_whole:
        raise RunError(
            f"run {run.name} is a full fine-tune: {run.results} holds whole models, which have no strength. Its samples and its validation loss compare them; for a grid make LoRAs of them (lora-loom extract BASE MODEL -o LORA, for a base that is a file) and name them with --lora"
        )
    saved = run.saved_loras()
    if not saved:
        raise RunError(f"run {run.name} in {run.path} has saved no LoRA yet: {remedy}")
    for one in saved:
        if damage := damage_of(one.path):
            raise ModelFileError(f"{one.path} is damaged ({damage}): delete it to leave its step out")
    return tuple(swept_lora(one.path, step_label(one.step), one.step) for one in saved)


def expanded(paths: Sequence[Path]) -> list[Path]:
    """The LoRA files that paths name: files, folders, patterns with * and ?. Raises RunError for a path without LoRA files."""
    found: list[Path] = []
    for path in (path.expanduser() for path in paths):
        if path.is_dir():
            here = sorted(path.glob("*.safetensors"), key=by_number)
        elif not path.exists() and glob.has_magic(str(path)):
            here = sorted((Path(name) for name in glob.glob(str(path)) if name.endswith(".safetensors")), key=by_number)  # noqa: PTH207 - absolute patterns too
        else:
            here = [path]
        if not here:
            raise RunError(f"--lora {path} holds no .safetensors file: name LoRA files, a folder of them, or a pattern")
        found += here
    return list(dict.fromkeys(found))


def step_label(step: int) -> str:
    """What a checkpoint is called on strips."""
    return f"step {step}"


def by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts step-400 before step-1200, as people do."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def read_loras(paths: Sequence[Path], run: RunFolder) -> tuple[SweptLora, ...]:
    """LoRA files by name; those of the run's checkpoints, wherever they lie, by step. Raises ModelFileError on a file that is
    no LoRA or damaged."""
    steps = {one.path.name: one.step for one in run.saved_loras()}
    labels = {path: step_label(steps[path.name]) for path in paths if path.name in steps}
    foreign = [path for path in paths if path not in labels]
    labels |= dict(zip(foreign, file_labels(foreign), strict=True))
    taken = Counter(labels.values())
    return tuple(
        swept_lora(path, labels[path] if taken[labels[path]] == 1 else str(path.with_suffix("")), steps.get(path.name))
        for path in paths
    )


def file_labels(paths: Sequence[Path]) -> list[str]:
    """What files of no run are called on strips: their names; where these are equal, what differs of their paths.

    checkpoint-400/pytorch_lora_weights.safetensors and checkpoint-1200/… are checkpoint-400 and checkpoint-1200.
    """
    if len({path.stem for path in paths}) == len(paths):
        return [path.stem for path in paths]
    whole = [path.absolute().with_suffix("").parts for path in paths]
    while len(whole) > 1 and len({parts[-1] for parts in whole}) == 1 and all(len(parts) > 1 for parts in whole):
        whole = [parts[:-1] for parts in whole]
    shared = min(len(parts) for parts in whole) - 1
    first = next((n for n in range(shared) if len({parts[n] for parts in whole}) > 1), shared)
    return ["/".join(parts[first:]) for parts in whole]


def swept_lora(path: Path, label: str, step: int | None = None) -> SweptLora:
    """A LoRA file to compare; the step of one that is of no run is what its metadata says. Raises ModelFileError."""
    tensors = read_lora(path)
    refuse_broken(tensors, str(path))
    known = trained_steps(TensorFile(path).metadata) if step is None else step
    has_texts = any(is_text_encoder(key) for key in tensors)
    return SweptLora(label=label, digest=tensors_digest(tensors), path=path, step=known, has_texts=has_texts)


def check_fits(loras: Sequence[SweptLora], base: Base) -> None:
    """Raise ModelFileError, with the file's name, for a LoRA that is of another model than `base`, or of other widths.

    No weight of the base is read.
    """
    network = base.skeleton()
    formats = Formats(family=base.family, denoiser=network)
    for lora in loras:
        try:
            tensors = {
                key: tensor for key, tensor in formats.native(read_lora(lora.path)).items() if not is_text_encoder(key)
            }
            if tensors:
                check_shapes(network, tensors)
        except ModelFileError as error:
            raise ModelFileError(f"{lora.path}: {error}") from error
