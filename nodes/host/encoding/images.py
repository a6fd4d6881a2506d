"""ComfyUI's IMAGE and MASK tensors to pictures and back. IMAGE: (B, H, W, 3) in [0, 1]."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....trainer.data.images.load import check_readable


def to_image(picture: Image.Image) -> Tensor:
    """One picture as an IMAGE batch of one."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(array).unsqueeze(0)


def files_to_image(paths: Sequence[Path]) -> Tensor:
    """Pictures of one size as an IMAGE batch; others are padded with white to the largest."""
    pictures = []
    for path in paths:
        check_readable(path)
        with Image.open(path) as image:
            pictures.append(image.convert("RGB"))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    batch = []
    for picture in pictures:
        canvas = Image.new("RGB", (width, height), (255, 255, 255))
        canvas.paste(picture, (0, 0))
        batch.append(to_image(canvas))
    return torch.cat(batch)


def from_image(image_HWC: Tensor) -> Image.Image:
    """One image of an IMAGE batch, (H, W, C) with 3 or 4 channels."""
    array = (image_HWC.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array)


def to_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def mask_to_picture(mask_HW: Tensor) -> Image.Image:
    array = (mask_HW.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array)
