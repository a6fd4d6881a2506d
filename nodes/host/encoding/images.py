"""Conversion between Pillow images and ComfyUI's IMAGE, (B, H, W, 3) in [0, 1], and MASK, (B, H, W) in [0, 1]."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....trainer.data.images.load import as_shown


def to_image(image: Image.Image) -> Tensor:
    """A Pillow image as an IMAGE batch of one, (1, H, W, 3)."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).unsqueeze(0)


def files_to_image(paths: Sequence[Path]) -> Tensor:
    """Image files as an IMAGE batch, padded with white to the largest width and height. Raises DataError for an unreadable one."""
    images = [as_shown(path) for path in paths]
    width, height = max(one.width for one in images), max(one.height for one in images)
    batch = []
    for one in images:
        canvas = Image.new("RGB", (width, height), (255, 255, 255))
        canvas.paste(one, (0, 0))
        batch.append(to_image(canvas))
    return torch.cat(batch)


def from_image(image_HWC: Tensor) -> Image.Image:
    """One image of an IMAGE batch, (H, W, C) in [0, 1] with 3 or 4 channels, as a Pillow image."""
    array = (image_HWC.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array)


def to_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def from_mask(mask_HW: Tensor) -> Image.Image:
    """One mask of a MASK batch, (H, W) in [0, 1], as a grey Pillow image."""
    array = (mask_HW.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array)
