"""Reference images from the graph, written to files so that records and the trainer can name them."""

import hashlib
from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

from ....trainer.errors import ConfigError
from ....trainer.storage.atomic import write_bytes
from ..paths import cache_folder
from .images import from_image, to_png

NAMES = ("reference", "reference_2", "reference_3")
"""Inputs whose images are used together."""


class ReferenceInputs(TypedDict, total=False):
    """Inputs of a node that takes reference images: IMAGE batches, (B, H, W, 3) in [0, 1]."""

    reference: Tensor | None
    reference_2: Tensor | None
    reference_3: Tensor | None
    edit_prompts: str
    """How the text encoder of an edit model reads prompts, as of `edit_prompts.chosen_encoding`."""


def kept_references(batches: Sequence[Tensor | None]) -> tuple[tuple[str, ...], ...]:
    """Files of the reference images that are used together: image n of every batch, or the only image of a batch.

    Raises ConfigError for batches of several images each with unequal counts.
    """
    used = [images for images in batches if images is not None]
    if batches[0] is None and used:
        raise ConfigError("reference is not connected, but reference_2 or reference_3 is: connect reference first")
    count = max((len(images) for images in used), default=0)
    for name, images in zip(NAMES, batches, strict=True):
        if images is not None and len(images) not in (1, count):
            raise ConfigError(
                f"{name} has {len(images)} images and another reference input {count}: connect equally many, or a single image for all"
            )
    kept = [
        [_kept(image, f"{name} {number + 1}") for number, image in enumerate(images)] for name, images in _used(batches)
    ]
    return tuple(tuple(files[number if len(files) > 1 else 0] for files in kept) for number in range(count))


def _used(batches: Sequence[Tensor | None]) -> list[tuple[str, Tensor]]:
    return [(name, images) for name, images in zip(NAMES, batches, strict=True) if images is not None]


def _kept(image_HWC: Tensor, name: str) -> str:
    content = to_png(from_image(image_HWC))
    path = cache_folder() / "images" / hashlib.sha256(content).hexdigest()[:32] / f"{name.replace('_', ' ')}.png"
    if not path.is_file():
        write_bytes(path, content)
    return str(path)


def reference_batches(inputs: ReferenceInputs) -> list[Tensor | None]:
    """The IMAGE batches in the order of `NAMES`; None for an input that is not connected."""
    return [inputs.get("reference"), inputs.get("reference_2"), inputs.get("reference_3")]
