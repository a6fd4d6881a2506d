"""The examination of a run: when it is due, and doctor.json in the run's folder."""

import json
from collections.abc import Callable
from pathlib import Path

from ..config.run import TrainingConfig
from ..data.batches import CachedBatches, Singles
from ..diffusion.denoiser import Denoiser
from ..diffusion.timesteps import NoiseLevels
from ..errors import RunError
from ..lora.adapter import Adapter
from ..storage.atomic import write_json
from ..training.loop import Batches
from ..types import Progress, Record
from .diagnose import lines, record
from .examine import examination_step, examine, passes, trained_images

DOCTOR_FILE = "doctor.json"


def due_at(batches: Batches, training: TrainingConfig) -> int | None:
    """The step after which a run is examined; None for batches whose images are not known."""
    if not isinstance(batches, CachedBatches):
        return None
    per_epoch = batches.plan.per_epoch / training.gradient_accumulation_steps
    return examination_step(per_epoch, training.steps)


def is_due(folder: Path, step: int, batches: Batches, training: TrainingConfig) -> bool:
    """Whether a run has reached its step for it, and was not examined yet."""
    due = due_at(batches, training)
    return due is not None and step >= due and not (folder / DOCTOR_FILE).is_file()


def cost_text(batches: Batches) -> str:
    """What an examination takes, said before it begins."""
    images = len(trained_images(batches.examples)) if isinstance(batches, CachedBatches) else 0
    return f"data doctor: {images} images, {passes(images)} forward passes at most, as long as about {passes(images) // 3} steps at batch 1"


def examine_run(
    folder: Path,
    step: int,
    denoiser: Denoiser,
    adapter: Adapter,
    batches: Batches,
    levels: NoiseLevels,
    progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Examine the training images with the LoRA as it is at a step, and write doctor.json. Returns what it holds.

    Whatever `should_stop` raises leaves no file, so that the examination begins again when the run goes on.
    """
    assert isinstance(batches, CachedBatches)
    found = examine(denoiser, adapter, Singles(batches), levels, progress, should_stop)
    written: Record = record(found, step)
    write_json(folder / DOCTOR_FILE, written)
    return written


def text_of(diagnosis: Record) -> str:
    """What a person reads of a doctor.json."""
    texts = [finding["text"] for finding in diagnosis["findings"]]
    return "\n".join(lines(texts, len(diagnosis["images"]), diagnosis["step"]))


def read_diagnosis(folder: Path) -> Record | None:
    """The doctor.json of a run; None if it was not examined. Raises RunError if it is damaged."""
    path = folder / DOCTOR_FILE
    if not path.is_file():
        return None
    try:
        diagnosis: Record = json.loads(path.read_text(encoding="utf-8"))
        text_of(diagnosis)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it, and have the run examined again") from error
    return diagnosis
