"""Opening images: EXIF turned upright, transparency laid on a colour, resized and cropped to a bucket.

Pixels leave here as RGB fp32 in [-1, 1], (3, H, W); masks as fp32 in [0, 1], (1, H, W).
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ConfigError, DataError
from ..records import Geometry, Size

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_PIXELS = 170_000_000
"""Larger images are refused: most likely a decompression bomb, and no bucket needs them. Below Pillow's own limit."""


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Raises DataError with the reason for anything that is no readable image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, with a plain message
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; make it smaller"
                    )
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read: remove or convert it") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): replace or remove it") from error


def upright_size(path: Path) -> Size:
    """(width, height) after EXIF rotation, read without decoding the pixels."""
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def check_readable(path: Path) -> None:
    """Decode the whole image once, so that a truncated file is found before training. Raises DataError."""
    with _opened(path) as image:
        image.load()


def parse_colour(name: str) -> tuple[int, int, int]:
    """Raises ConfigError for anything but a colour name or #rrggbb."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f"dataset.background = {name!r}: use a colour name (white) or #rrggbb") from error


def load_pixels(path: Path, geometry: Geometry, background: str = "white") -> Tensor:
    """(3, H, W) in [-1, 1], resized and cropped as the geometry says."""
    with _opened(path) as image:
        flat = flatten(ImageOps.exif_transpose(image), parse_colour(background))
    array = np.asarray(place(flat, geometry, Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB; transparent pixels become the background colour. 16-bit greys are scaled, not cut off."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.asarray(image, dtype=np.float64)
        top = 65535.0 if array.max() > 255 else 255.0
        image = Image.fromarray((array * (255.0 / top)).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def place(image: Image.Image, geometry: Geometry, resampling: Image.Resampling) -> Image.Image:
    """Resize, crop and mirror."""
    if image.size != geometry.resized:
        image = image.resize(geometry.resized, resampling)
    left, top = geometry.crop_left, geometry.crop_top
    image = image.crop((left, top, left + geometry.target[0], top + geometry.target[1]))
    return ImageOps.mirror(image) if geometry.flip else image


def load_mask(path: Path, geometry: Geometry, *, from_alpha: bool) -> Tensor:
    """(1, H, W) in [0, 1] at the bucket's size; of a colour image the brightness counts."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        grey = upright.convert("RGBA").getchannel("A") if from_alpha else flatten(upright, (0, 0, 0)).convert("L")
    if grey.size != geometry.original:
        grey = grey.resize(geometry.original, Image.Resampling.BILINEAR)
    array = np.asarray(place(grey, geometry, Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(array / 255).unsqueeze(0)
