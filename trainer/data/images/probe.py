"""One look at an image file: read once, decoded once, so that damage is found before training and not while it runs."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from ...types import Size
from .load import flatten, opened
from .saliency import focus

THUMBNAIL = 64
"""Side in pixels that a picture is decoded to at least for its fingerprint."""

FIELDS = 8


@dataclass(frozen=True, kw_only=True)
class ImageProbe:
    digest: str
    """sha256 of the content."""
    size: Size
    """Upright."""
    fingerprint: str
    """Perceptual hash (DCT, 64 bits) as 16 hex digits; empty without imagehash."""
    colours: str
    """Mean colours of 8 x 8 fields, RGB, row by row, as hex digits."""
    focus: str
    """Where it draws the eye, see `saliency.focus`; empty if nobody asked."""


def probe(path: Path, content: bytes, *, focused: bool = False) -> ImageProbe:
    """Raises DataError for what is no readable image. `path` is only for its messages; `focused` asks for `focus`."""
    with opened(path, content) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = (image.height, image.width) if turned else (image.width, image.height)
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


@cache
def can_fingerprint() -> bool:
    """The pack may have been updated without what it newly requires."""
    return find_spec("imagehash") is not None


def thumbnail(image: Image.Image) -> Image.Image:
    """A loaded image as a square of RGB, upright, whatever its shape."""
    side = (THUMBNAIL, THUMBNAIL)
    if image.mode in ("L", "RGB"):  # averaging first is faster
        image = image.resize(side, Image.Resampling.BOX)
    image.info.pop("icc_profile", None)  # shifts colours a little; nothing here is that exact
    return flatten(ImageOps.exif_transpose(image), (255, 255, 255)).resize(side, Image.Resampling.BOX)


def fingerprint(small: Image.Image) -> str:
    """Perceptual hash of a thumbnail; empty where imagehash is not installed, which stops nobody."""
    if not can_fingerprint():
        return ""
    import imagehash

    return str(imagehash.phash(small))
