"""Probing an image file: it is decoded once before training, which finds damaged files and gives size and fingerprint."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from ...types import Size
from .load import flatten, opened, upright
from .saliency import focus

THUMBNAIL = 64
"""Side in pixels of the square from which the fingerprint is computed."""
FIELDS = 8
"""Mean colours are taken of this many columns and rows of fields."""


@dataclass(frozen=True, kw_only=True)
class ImageProbe:
    """What is known of an image file after decoding it once."""

    digest: str
    """sha256 of the content."""
    size: Size
    """(width, height) in pixels after EXIF rotation."""
    fingerprint: str
    """Perceptual hash (DCT, 64 bits) as 16 hex digits; empty without imagehash."""
    colours: str
    """Mean colours of 8 x 8 fields, RGB, row by row, as hex digits."""
    focus: str
    """Saliency by columns and rows, see `saliency.focus`; empty if it was not requested."""


def probe(path: Path, content: bytes, *, focused: bool = False) -> ImageProbe:
    """Decode the image in `content`. `path` is used in messages only; `focused` requests `focus`. Raises DataError."""
    with opened(path, content) as image:
        size = upright(image)
        image.draft(None, (THUMBNAIL, THUMBNAIL))  # JPEG only: scaled while decoding; every byte is still read
        image.load()
        small = thumbnail(image)
        return ImageProbe(
            digest=hashlib.sha256(content).hexdigest(),
            size=size,
            fingerprint=fingerprint(small),
            focus=focus(small) if focused else "",
            colours=small.resize((FIELDS, FIELDS), Image.Resampling.BOX).tobytes().hex(),
        )


def alpha_range(path: Path, content: bytes) -> str:
    """The least and greatest value of an image's alpha channel, such as "0 255". Raises DataError."""
    with opened(path, content) as image:
        least, most = image.convert("RGBA").getchannel("A").getextrema()
    return f"{least} {most}"


@cache
def can_fingerprint() -> bool:
    """Whether imagehash is installed. It may be missing where the pack was updated without its requirements."""
    return find_spec("imagehash") is not None


def thumbnail(image: Image.Image) -> Image.Image:
    """A loaded image as an upright RGB square of 64 x 64 pixels, whatever its proportions."""
    side = (THUMBNAIL, THUMBNAIL)
    if image.mode in ("L", "RGB"):  # reducing before the conversion is faster
        image = image.resize(side, Image.Resampling.BOX)
    image.info.pop("icc_profile", None)  # it shifts colours by less than a fingerprint resolves
    return flatten(ImageOps.exif_transpose(image), (255, 255, 255)).resize(side, Image.Resampling.BOX)


def fingerprint(small: Image.Image) -> str:
    """Perceptual hash of a thumbnail as 16 hex digits; empty where imagehash is not installed, since only the report needs it."""
    if not can_fingerprint():
        return ""
    import imagehash

    return str(imagehash.phash(small))
