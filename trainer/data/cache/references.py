"""Reference images of edit models: how they are placed, for the VAE and for a text encoder that sees them too."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from ...config.toml import digest
from ...families.common.family import Encoders, Text, VisionTextEncoder
from ...types import Geometry, Size
from ..images.load import load_pixels, upright_size
from ..sets.buckets import Buckets

REFERENCE_STEP = 32
"""Sides of reference images are multiples of this many pixels: an even number of 2x2 patches of latents (Qwen-Image)."""
SHOWN_STEP = 28
"""Sides of an image for a language model are multiples of this many pixels: 2x2 patches of 14 (Qwen2.5-VL)."""


def reference_placement(path: Path, target: Size, *, flip: bool = False) -> Geometry:
    """For the VAE: resized to about the area of the picture that is made, in the image's own proportions."""
    side = round((target[0] * target[1]) ** 0.5)
    return Buckets(method="pixel_area", resolution=side, step=REFERENCE_STEP).geometry(upright_size(path), flip=flip)


def vision_placement(path: Path, side: int, *, flip: bool = False) -> Geometry:
    """For the text encoder: the area of a square of `side` pixels, whatever size is trained or rendered."""
    return Buckets(method="pixel_area", resolution=side, step=SHOWN_STEP).geometry(upright_size(path), flip=flip)


def reference_latents(encoders: Encoders, path: Path, place: Geometry, background: str = "white") -> Tensor:
    """(C, h, w) raw latents."""
    return encoders.image.encode(load_pixels(path, place, background).unsqueeze(0))[0].float().cpu()


def encode_with_references(
    encoders: Encoders, prompt: str, paths: Sequence[Path], side: int, background: str = "white", *, flip: bool = False
) -> Text:
    """A prompt as a text encoder reads it that is shown the images, in this order."""
    text = cast(VisionTextEncoder, encoders.text)
    shown = [load_pixels(path, vision_placement(path, side, flip=flip), background) for path in paths]
    [made] = text.encode_beside([prompt], [shown])
    return made


def references_digest(contents: Sequence[str], side: int, background: str = "white", *, flip: bool = False) -> str:
    """Of everything that decides what the text encoder sees of images with these digests."""
    return digest(["shown", *contents, side, background, flip])
