"""What is odd about masks, as far as the index of files tells."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import some
from .index import FileFacts

OTHER_PROPORTIONS = 1.03
"""Masks are named from this ratio of their proportions to those of their image on."""


def mask_notes(pairs: Sequence[tuple[Path, Path]], facts: Mapping[Path, FileFacts], folder: str) -> list[str]:
    """What is odd about the masks of a set, given as (image, mask); where both are one file its alpha channel is the mask."""
    black, opaque, others = [], [], []
    for image, mask in pairs:
        known, own = facts[mask], facts[image]
        if image == mask:
            black += [image.name] if known.alpha == "0 0" else []
            opaque += [image.name] if known.alpha == "255 255" else []
            continue
        black += [mask.name] if not int(known.colours or "1", 16) else []
        ratio = known.width * own.height / (known.height * own.width)
        others += [mask.name] if max(ratio, 1 / ratio) > OTHER_PROPORTIONS else []
    said = {
        "the masks of {} images are black all over, so nothing of these images is trained": black,
        "{} images have no transparency, so all of them is trained (masks = 'alpha')": opaque,
        "{} masks have other proportions than their images and are stretched over them": others,
    }
    return [f"{folder}: {text.format(len(names))}: {some(names)}" for text, names in said.items() if names]
