"""Loading images: EXIF rotation, conversion to sRGB, transparency composited on a colour, resizing and cropping to a bucket.

The first frame of an animated file is used.

Pixels are returned as RGB fp32 in [-1, 1], (3, H, W); masks as fp32 in [0, 1], (1, H, W).
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ...errors import ConfigError, DataError
from ...types import Geometry, ImageVariant, Size
from .variants import recoloured, turned

SUFFIXES = {
    ".apng", ".avif", ".avifs", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp",
}  # fmt: skip
"""Suffixes of the images that Pillow reads by itself."""
PLUGINS = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""{suffix: (module, package)} of images that Pillow reads with a plugin."""
MAX_PIXELS = 170_000_000
"""Larger images are refused: they are most likely decompression bombs, and no bucket needs them. This is below Pillow's own limit."""
MAX_SIDE = 65_535
"""The longest side of JPEG and WebP. Pillow keeps tables for each row, so that a high and narrow image costs more than its pixels."""
DEFLATE_RATIO = 1032
"""The most that deflate, and with it a PNG, can compress (zlib's technical notes)."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError,
          RuntimeError, MemoryError, struct.error, zlib.error)  # fmt: skip
"""The exceptions that Pillow's decoders raise on damaged files."""
RUN_PROGRAMS = {"EPS", "WMF"}
"""Formats of Pillow that are drawn by another program (Ghostscript) or by the system: never asked for, whatever a file is called."""
BEGINNINGS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the images (git lfs pull)",
    b"<": "it holds a web page or a drawing (SVG); get the image itself, or convert it",
    b"\xff\x0a": "it is JPEG XL; pip install pillow-jxl-plugin, or convert it",
    b"\0\0\0\x0cJXL ": "it is JPEG XL; pip install pillow-jxl-plugin, or convert it",
}
"""{how a file begins that is no image, or one of another kind than its suffix says: the remedy}."""
HEIC = {"heic", "heix", "heim", "heis", "hevc", "mif1", "msf1"}
"""Brands of HEIC files, at their ninth byte."""
_SRGB = ImageCms.createProfile("sRGB")


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of the images that can be read here: Pillow's own and those of the plugins that are installed."""
    return frozenset(SUFFIXES | {suffix for suffix, (module, _) in PLUGINS.items() if _with_plugin(module)})


@cache
def _with_plugin(module: str) -> bool:
    """Make a plugin of Pillow known to it. False where it is not installed or does not work here."""
    try:
        plugin = import_module(module)
    except (ImportError, OSError):
        return False
    if hasattr(plugin, "register_heif_opener"):  # pillow-jxl-plugin registers itself when it is imported
        plugin.register_heif_opener()
    return True


def file_digest(path: Path) -> str:
    """Returns the sha256 of the file's bytes, as hex digits."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open the image in a file, or in `content` where the file was read already.

    Raises DataError with the reason if it is not a readable image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides, with a plain message
            with Image.open(path if content is None else io.BytesIO(content), formats=_formats()) as image:
                _check_size(path, image, path.stat().st_size if content is None else len(content))
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {MAX_PIXELS:,} pixels; make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that can be read: {_remedy(path, _head(path, content))}") from error
    except DAMAGE as error:
        raise DataError(f"{path} is damaged ({error or type(error).__name__}): replace or remove it") from error


def _check_size(path: Path, image: Image.Image, size: int) -> None:
    """Before a pixel is decoded. Raises DataError for an image that could take memory out of all proportion."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise DataError(
            f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}, or than {MAX_SIDE:,} on a side; make it smaller"
        )
    if image.format == "PNG" and image.width * image.height > size * DEFLATE_RATIO * 8:
        raise DataError(
            f"{path} is damaged ({image.width} x {image.height} pixels in {size} bytes): replace or remove it"
        )


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in RUN_PROGRAMS]


def _head(path: Path, content: bytes | None) -> bytes:
    """How a file begins; b"" where it is empty, or cannot be read any more."""
    if content is not None:
        return content[:64]
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _remedy(path: Path, head: bytes) -> str:
    """What to do about a file that is no image, by what it begins with, whatever its name says."""
    brand = head[8:12].decode("latin-1") if head[4:8] == b"ftyp" else ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    known = next(
        (remedy for start, remedy in BEGINNINGS.items() if text.startswith(start) or head.startswith(start)), ""
    )
    if not head:
        known = "it is empty; get it again, or remove it"
    elif brand in HEIC:
        known = "it is HEIC; pip install pillow-heif, or convert it"
    kind = "avif" if brand in ("avif", "avis") else path.suffix.lower().removeprefix(".")
    if not known and kind in ("avif", "webp") and not features.check(kind):
        known = (
            f"this Pillow was built without {kind.upper()}; install a newer one (pip install -U pillow), or convert it"
        )
    return known or ("it is a video; remove it" if brand and kind != "avif" else "remove or convert it")


def upright(image: Image.Image) -> Size:
    """Returns (width, height) of an opened image after EXIF rotation."""
    if (
        image.format == "TIFF"
    ):  # Pillow turns these itself while it decodes them, some of its versions their size before that
        image.load()
    rotated = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if rotated else (image.width, image.height)


def upright_size(path: Path) -> Size:
    """Returns (width, height) after EXIF rotation, read without decoding the pixels, TIFF apart. Raises DataError."""
    with opened(path) as image:
        return upright(image)


def check_readable(path: Path) -> None:
    """Decode the whole image once, so that a truncated file is noticed before training. Raises DataError."""
    with opened(path) as image:
        image.load()


def parse_colour(name: str) -> tuple[int, int, int]:
    """Returns (red, green, blue) of a colour name or #rrggbb, each 0 to 255. Raises ConfigError for anything else."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f"dataset.background = {name!r}: use a colour name (white) or #rrggbb") from error


def as_shown(path: Path) -> Image.Image:
    """A whole image as a viewer shows it: upright, in sRGB, on white where it is transparent. Raises DataError."""
    with opened(path) as image:
        return flatten(ImageOps.exif_transpose(image), (255, 255, 255))


def load_pixels(
    path: Path, geometry: Geometry, background: str = "white", variant: ImageVariant | None = None
) -> Tensor:
    """The image as (3, H, W) in [-1, 1], resized and cropped according to the geometry, or a variant of it. Raises DataError."""
    with opened(path) as image:
        flat = flatten(ImageOps.exif_transpose(image), parse_colour(background))
    cropped = resize_and_crop(flat, geometry, Image.Resampling.LANCZOS, variant.rotation if variant else 0.0)
    array = np.asarray(recoloured(cropped, variant) if variant else cropped, dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in sRGB, transparent pixels composited on the background colour. 16-bit greys are scaled, not clipped."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep_grey(image, background)
    image = to_srgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A grey image of more than 8 bits as 8-bit RGB. Mode "I;16" always has 16 bits; for "I" and "F" the largest value decides.

    Raises ValueError for numbers that are no greys.
    """
    array = np.asarray(image, dtype=np.float64)
    least, most = array.min(), array.max()
    if not (least >= 0 and most <= 65535):
        raise ValueError(f"numbers from {least:g} to {most:g}, where greys go from 0 to 1, 255 or 65535")
    top = 65535.0 if image.mode.startswith("I;16") or most > 255 else 255.0
    top = 1.0 if image.mode == "F" and most <= 1 else top
    grey = Image.fromarray((array * (255.0 / top)).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a PNG may declare one grey value as transparent
        grey.paste(background, mask=Image.fromarray(np.where(array == transparent, 255, 0).astype(np.uint8)))
    return grey


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB by the colour profile in the file, keeping the alpha channel.

    An image without a profile, or with a broken one, is returned unchanged: viewers ignore a broken profile as well, so
    the image is trained as people see it.
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
        converted = ImageCms.profileToProfile(plain, profile, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None  # None is returned only for work in place
    if alpha:
        converted.putalpha(alpha)
    return converted


def resize_and_crop(
    image: Image.Image, geometry: Geometry, resampling: Image.Resampling, degrees: float = 0.0
) -> Image.Image:
    """Resize, crop, turn and, where the geometry says so, mirror an upright image."""
    if image.size != geometry.resized:
        image = image.resize(geometry.resized, resampling)
    left, top = geometry.crop_left, geometry.crop_top
    if degrees:
        image = turned(image, geometry, degrees, resampling)
    else:
        image = image.crop((left, top, left + geometry.target[0], top + geometry.target[1]))
    return ImageOps.mirror(image) if geometry.flip else image


def load_mask(path: Path, geometry: Geometry, *, from_alpha: bool, degrees: float = 0.0) -> Tensor:
    """A mask as (1, H, W) in [0, 1] at the bucket's size: the alpha channel, or the brightness of the image; turned by some degrees
    as its image is. Raises DataError."""
    with opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        grey = upright.convert("RGBA").getchannel("A") if from_alpha else flatten(upright, (0, 0, 0)).convert("L")
    if grey.size != geometry.original:
        grey = grey.resize(geometry.original, Image.Resampling.BILINEAR)
    array = np.asarray(resize_and_crop(grey, geometry, Image.Resampling.BOX, degrees), dtype=np.float32)
    return torch.from_numpy(array / 255).unsqueeze(0)
