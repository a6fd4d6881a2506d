"""Opening images: EXIF turned upright, colours to sRGB, transparency laid on a colour, resized and cropped to a bucket.

Of an animated file the first frame counts.

Pixels leave here as RGB fp32 in [-1, 1], (3, H, W); masks as fp32 in [0, 1], (1, H, W).
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ...errors import ConfigError, DataError
from ...types import Geometry, Size

SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
MAX_PIXELS = 170_000_000
"""Larger images are refused: most likely a decompression bomb, and no bucket needs them. Below Pillow's own limit."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError,
          RuntimeError, MemoryError, struct.error, zlib.error)  # fmt: skip
"""What Pillow's decoders raise on files that are not what they say they are."""
_SRGB = ImageCms.createProfile("sRGB")


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image in a file, or in its content where that was read already.

    Raises DataError with the reason for anything that is no readable image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, with a plain message
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; make it smaller"
                    )
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read: {_remedy(path)}") from error
    except DAMAGE as error:
        raise DataError(f"{path} is damaged ({error or type(error).__name__}): replace or remove it") from error


def _remedy(path: Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("avif", "webp") and not features.check(kind):
        return (
            f"this Pillow was built without {kind.upper()}; install a newer one (pip install -U pillow), or convert it"
        )
    return "remove or convert it"


def upright_size(path: Path) -> Size:
    """(width, height) after EXIF rotation, read without decoding the pixels."""
    with opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def check_readable(path: Path) -> None:
    """Decode the whole image once, so that a truncated file is found before training. Raises DataError."""
    with opened(path) as image:
        image.load()


def parse_colour(name: str) -> tuple[int, int, int]:
    """Raises ConfigError for anything but a colour name or #rrggbb."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f"dataset.background = {name!r}: use a colour name (white) or #rrggbb") from error


def load_pixels(path: Path, geometry: Geometry, background: str = "white") -> Tensor:
    """(3, H, W) in [-1, 1], resized and cropped as the geometry says."""
    with opened(path) as image:
        flat = flatten(ImageOps.exif_transpose(image), parse_colour(background))
    array = np.asarray(place(flat, geometry, Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """sRGB; transparent pixels become the background colour. 16-bit greys are scaled, not cut off."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image, background)
    image = to_srgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Of more than 8 bits: "I;16" always has 16, of "I" and "F" the largest value decides."""
    array = np.asarray(image, dtype=np.float64)
    top = 65535.0 if image.mode.startswith("I;16") or array.max() > 255 else 255.0
    grey = Image.fromarray((array * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a PNG may name one grey that is not there
        grey.paste(background, mask=Image.fromarray(np.where(array == transparent, 255, 0).astype(np.uint8)))
    return grey


def to_srgb(image: Image.Image) -> Image.Image:
    """By the colour profile in the file; its alpha channel stays. Without one, or with one that is broken, as it is.

    Viewers ignore a broken profile as well, so the picture is trained as it is seen.
    """
    content = image.info.get("icc_profile")
    if not content:
        return image
    if "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "LA", "RGBA", "CMYK"):
        image = image.convert("RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
        plain = image.convert(image.mode.removesuffix("A")) if alpha else image
        made = ImageCms.profileToProfile(plain, profile, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert made is not None  # None is returned only for work in place
    if alpha:
        made.putalpha(alpha)
    return made


def place(image: Image.Image, geometry: Geometry, resampling: Image.Resampling) -> Image.Image:
    """Resize, crop and mirror."""
    if image.size != geometry.resized:
        image = image.resize(geometry.resized, resampling)
    left, top = geometry.crop_left, geometry.crop_top
    image = image.crop((left, top, left + geometry.target[0], top + geometry.target[1]))
    return ImageOps.mirror(image) if geometry.flip else image


def load_mask(path: Path, geometry: Geometry, *, from_alpha: bool) -> Tensor:
    """(1, H, W) in [0, 1] at the bucket's size; of a colour image the brightness counts."""
    with opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        grey = upright.convert("RGBA").getchannel("A") if from_alpha else flatten(upright, (0, 0, 0)).convert("L")
    if grey.size != geometry.original:
        grey = grey.resize(geometry.original, Image.Resampling.BILINEAR)
    array = np.asarray(place(grey, geometry, Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(array / 255).unsqueeze(0)
