"""The data doctor on drawings with planted faults: what it finds, and how often it accuses an image that is as it should be.

A set has 16 toadstools of the demo's, two of which have each other's captions, a copy of one of them that was saved as a JPEG and made a
little brighter, and one image that does not belong there. `python -m bench doctor`; LOOM_BENCH says how many sets, 5 by default, LOOM_FIRST
the seed of the first one.
"""

import os
import random
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance

from lora_loom.trainer.cli.console import QuietHost
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.demo.scenes import BACKGROUNDS, random_concept_scene, random_scene
from lora_loom.trainer.doctor.report import read_diagnosis, text_of
from lora_loom.trainer.runs.headless import run_folder, train

from .common import report, two_blocks

KINDS = {"caption": ("caption",), "double": ("double",), "foreign": ("fights", "foreign", "known")}
"""{planted fault: findings that name it}."""
FRESH = 100
"""Seed of the first set: the limits in trainer/doctor/diagnose.py were set with those of 0 to 7 in sight."""


def plant(folder: Path, seed: int) -> dict[str, str]:
    """Write a set with faults. Returns {file name: its fault}."""
    rng = random.Random(seed)
    names = list(BACKGROUNDS)
    rng.shuffle(names)
    scenes = [random_concept_scene(rng, name, wide=True) for name in (*names, *names[:4])]
    images: dict[str, tuple[Image.Image, str]] = {
        f"toadstool_{i:02d}": (one.draw(), one.caption) for i, one in enumerate(scenes)
    }
    first, second, copied = (f"toadstool_{i:02d}" for i in rng.sample(range(len(names)), 3))
    images[first], images[second] = (images[first][0], images[second][1]), (images[second][0], images[first][1])
    stranger = random_scene(rng)
    words = "a toadstool " + BACKGROUNDS[stranger.background].phrase if seed % 2 else stranger.caption
    images["stranger"] = (stranger.draw(), words)
    folder.mkdir(parents=True)
    for name, (image, caption) in images.items():
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    ImageEnhance.Brightness(images[copied][0]).enhance(1.03).save(folder / "copy.jpg", quality=75)
    (folder / "copy.txt").write_text(images[copied][1])
    return {f"{first}.png": "caption", f"{second}.png": "caption", "copy.jpg": "double", "stranger.png": "foreign"}


def examined(root: Path, seed: int) -> tuple[dict[str, str], dict[str, Any]]:
    """The faults of a set, and what the doctor writes of a run on it with the defaults."""
    faults = plant(root / "images", seed)
    tables = {
        "name": "planted",
        "model": {"base": str(two_blocks())},
        "dataset": [{"folder": str(root / "images")}],
        "data": {"resolution": 128},
        "training": {"steps": 180, "save_every": 0, "seed": seed},
        "memory": {"gradient_checkpointing": False},
        "validation": {"doctor": True},
        "output": {"directory": str(root / "runs")},
    }
    config = parse(tables, TrainConfig)
    train(config, QuietHost())
    diagnosis = read_diagnosis(run_folder(config).path)
    assert diagnosis is not None
    return faults, diagnosis


def compared(faults: dict[str, str], diagnosis: dict[str, Any]) -> tuple[set[str], set[str]]:
    """(planted faults that were found, images that were accused and are as they should be)."""
    found, accused = set(), set()
    for finding in diagnosis["findings"]:
        hit = [name for name in finding["images"] if finding["kind"] in KINDS.get(faults.get(name, ""), ())]
        found.update(hit)
        accused.update(() if hit else (name for name in finding["images"] if name not in faults))
    return found, accused


def main() -> None:
    planted, hits, innocent, alarms = 0, 0, 0, 0
    missed: list[str] = []
    first = int(os.environ.get("LOOM_FIRST", str(FRESH)))
    for seed in range(first, first + int(os.environ.get("LOOM_BENCH", "5"))):
        with tempfile.TemporaryDirectory() as folder:
            faults, diagnosis = examined(Path(folder), seed)
        print(text_of(diagnosis), flush=True)
        found, accused = compared(faults, diagnosis)
        planted, hits = planted + len(faults), hits + len(found)
        innocent, alarms = innocent + len(diagnosis["images"]) - len(faults), alarms + len(accused)
        missed += [f"{faults[name]} in set {seed}" for name in faults if name not in found]
    report("doctor", {
        "faults planted": planted, "found, share (aim >= 0.9)": hits / planted,
        "images without a fault": innocent, "accused of them, share (aim <= 0.05)": alarms / innocent,
        "missed": ", ".join(missed) or "none",
    })  # fmt: skip


if __name__ == "__main__":
    main()
