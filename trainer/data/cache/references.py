"""Reference images of edit models: how they are resized and encoded by the VAE, and by text encoders that read images."""

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
"""Sides of reference images for the VAE are multiples of this many pixels: an even number of 2x2 patches of latents (Qwen-Image)."""
VISION_STEP = 28
"""Sides of images for a vision language model are multiples of this many pixels: 2x2 patches of 14 (Qwen2.5-VL)."""


def reference_placement(path: Path, target: Size, *, flip: bool = False) -> Geometry:
    """How a reference image is resized for the VAE: to about the area of `target`, in its own proportions. Raises DataError."""
    side = round((target[0] * target[1]) ** 0.5)
    return Buckets(method="pixel_area", resolution=side, step=REFERENCE_STEP).geometry(upright_size(path), flip=flip)


def vision_placement(path: Path, side: int, *, flip: bool = False) -> Geometry:
    """How a reference image is resized for the text encoder: to the area of a square of `side` pixels, whatever size is trained."""
    return Buckets(method="pixel_area", resolution=side, step=VISION_STEP).geometry(upright_size(path), flip=flip)


def reference_latents(encoders: Encoders, path: Path, geometry: Geometry, background: str = "white") -> Tensor:
    """The raw latents of a reference image, (C, h, w) in fp32 on the CPU."""
    return encoders.image.encode(load_pixels(path, geometry, background).unsqueeze(0))[0].float().cpu()


def encode_with_references(
    encoders: Encoders, prompt: str, paths: Sequence[Path], side: int, background: str = "white", *, flip: bool = False
) -> Text:
    """The text encoder's outputs for a prompt that it reads together with the images, in this order. `side` as in `vision_placement`."""
    text = cast(VisionTextEncoder, encoders.text)
    images = [load_pixels(path, vision_placement(path, side, flip=flip), background) for path in paths]
    [encoded] = text.encode_beside([prompt], [images])
    return encoded


def references_digest(contents: Sequence[str], side: int, background: str = "white", *, flip: bool = False) -> str:
    """A digest of everything that determines what the text encoder reads of reference images with these content digests."""
    return digest(["shown", *contents, side, background, flip])
