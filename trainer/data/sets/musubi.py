"""Reads the [[datasets]] of a musubi-tuner TOML, which name their folder themselves (image_directory) and have no subsets."""

import math
from collections.abc import Mapping

from ...errors import ConfigError
from ...types import Json
from .checks import switch_of, text_of, whole_of

REFUSED = {
    "video_directory": "only images are trained",
    "video_jsonl_file": "only images are trained",
    "image_jsonl_file": "write the captions to metadata.jsonl in the images' folder and name the folder as image_directory",
}
"""{option: why its images cannot be read, or what to write}."""
INSTEAD = {
    "batch_size": "set training.batch_size",
    "control_resolution": "reference images get the size of their family",
    "multiple_target": "one target per image is trained",
    "no_resize_control": "reference images get the size of their family",
}
KNOWN = {
    "bucket_no_upscale", "cache_directory", "caption_extension", "control_directory", "enable_bucket", "image_directory", "num_repeats",
    "resolution",
}  # fmt: skip
"""Options that are taken, and cache_directory, which has no effect here."""
STEP = 16
"""Bucket sides are multiples of this many pixels."""


def is_set(dataset: Mapping[str, object]) -> bool:
    """Whether a [[datasets]] table is musubi-tuner's."""
    return any(name in dataset for name in ("image_directory", *REFUSED))


def translate(options: Mapping[str, object], area: tuple[int, int] | None, notes: list[str], where: str) -> Json:
    """The options of our set. `area` is the resolution that was read already. Raises ConfigError for what cannot be trained."""
    for name, remedy in REFUSED.items():
        if options.get(name):
            raise ConfigError(f"{name} = {options[name]!r}: {remedy}")
    width, height = area or (960, 544)  # musubi-tuner's default
    side = math.sqrt(width * height)
    if width != height:
        notes.append(
            f"{where}: resolution = {[width, height]} is interpreted as its area, a square of {side:.0f} pixels"
        )
    buckets: Json = {"buckets": "off"}
    if switch_of(options, "enable_bucket"):
        # Its buckets: every multiple of the step from half the side of the square on, and what that leaves of the area.
        buckets = {
            "buckets": "kohya",
            "min_side": max(STEP, int(side) // 2 // STEP * STEP),
            "max_side": max(STEP, int(side) * 2 // STEP * STEP),
            "upscale": not switch_of(options, "bucket_no_upscale"),
        }
    return {
        "folder": text_of(options, "image_directory"),
        "repeats": whole_of(options, "num_repeats", 1),
        "captions": "sidecar",
        "caption_extension": text_of(options, "caption_extension") or ".caption,.txt",
        "empty_captions": True,
        "references": text_of(options, "control_directory"),
        "resolutions": [round(side)],
        **buckets,
    }
