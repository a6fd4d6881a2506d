"""How many steps the epochs of another trainer are, where the images are there to be counted."""

import math
import re
from pathlib import Path

from .optimizers import has_option
from .translation import Translation

UNKNOWN = 1000
"""Steps that are written where the images cannot be counted."""


def images_in(folder: str, *, kohya: bool, recursive: bool = False) -> int | None:
    """How many images an epoch draws from a folder: N times for kohya's N_concept sub-folders. None if it is not there."""
    from PIL import Image

    place = Path(folder).expanduser()
    if not folder or not place.is_dir():
        return None
    known = Image.registered_extensions()
    if not kohya:
        files = place.rglob("*") if recursive else place.iterdir()
        return sum(file.suffix.lower() in known for file in files)
    counted = 0
    for inner in place.iterdir():
        match = re.match(r"(\d+)_", inner.name)
        if match and inner.is_dir():
            counted += int(match[1]) * sum(file.suffix.lower() in known for file in inner.iterdir())
    return counted


def steps_of_epoch(translation: Translation) -> int | None:
    """Steps of one epoch of what was translated; None where a folder is not there."""
    counted = 0
    for table in translation.datasets:
        options = {**translation.for_datasets, **table.options}
        if options.get("role", "train") != "train":
            continue
        here = images_in(
            str(options["folder"]), kohya=options.get("layout") == "kohya", recursive=bool(options.get("recursive"))
        )
        if here is None:
            return None
        counted += here * int(options.get("repeats", 1)) * max(1, len(options.get("resolutions", [])))
    settings = translation.settings
    batches = math.ceil(counted / max(1, settings.get("training.batch_size", 1)))
    return math.ceil(batches / max(1, settings.get("training.gradient_accumulation_steps", 1))) if counted else None


def put_epochs(translation: Translation, epochs: float, *options: str) -> None:
    """Set the length of a run that counts epochs. The datasets and the batch size must be known."""
    if has_option("training.epochs"):
        translation.put("training.epochs", epochs, *options)
        return
    each = steps_of_epoch(translation)
    if each is None:
        note = f"{epochs:g} epochs: the images are not there to be counted, so {UNKNOWN} steps stand here; lora-loom cache prints the steps of an epoch"
        translation.put("training.steps", UNKNOWN, *options, nearly=note)
        translation.notes.append(f"training.steps: {note}")
        return
    steps = max(1, math.ceil(epochs * each))
    translation.put(
        "training.steps", steps, *options, nearly=f"{epochs:g} epochs of {each} steps; buckets may add some"
    )


def put_save_epochs(translation: Translation, epochs: float, option: str) -> None:
    """Set how often a run that counts epochs saves."""
    if has_option("training.save_every_epochs"):
        translation.put("training.save_every_epochs", int(epochs), option)
        return
    each = steps_of_epoch(translation)
    note = "every epoch there" if epochs == 1 else f"every {epochs:g} epochs there"
    translation.put("training.save_every", max(1, round(epochs * each)) if each else 250, option, nearly=note)
