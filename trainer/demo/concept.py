"""How much an image looks like a toadstool: masked normalised cross-correlation with the drawn one, without a network.

1 is a perfect match somewhere at some size, 0 is chance.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .scenes import OVERSAMPLING, SIZE, toadstool

SCALES = (0.45, 0.52, 0.6, 0.68)
"""Sizes of the toadstool that are tried, as shares of the image's side."""


@cache
def _template(scale: float) -> tuple[Tensor, Tensor]:
    """Returns (3, h, w) colours and (1, h, w) weights: 1 on the toadstool, 0 elsewhere."""
    side = round(SIZE * scale)
    fine = side * OVERSAMPLING
    colours, mask = Image.new("RGB", (fine, fine)), Image.new("L", (fine, fine))
    for corners, colour in toadstool():
        placed = [((x + 0.5) * fine, (y + 0.5) * fine) for x, y in corners]
        ImageDraw.Draw(colours).polygon(placed, fill=colour)
        ImageDraw.Draw(mask).polygon(placed, fill=255)
    size = (side, side)
    shrunk = [np.asarray(i.resize(size, Image.Resampling.BOX), np.float32) / 255 for i in (colours, mask)]
    return torch.from_numpy(shrunk[0]).permute(2, 0, 1), torch.from_numpy(shrunk[1])[None]


def concept_score(image: Image.Image) -> float:
    """The best correlation over all positions and sizes, in [-1, 1]."""
    array = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None]
    return max(_correlation(pixels, *_template(scale)) for scale in SCALES)


def _correlation(pixels_1CHW: Tensor, colours_CHW: Tensor, mask_1HW: Tensor) -> float:
    """Correlation of colours inside the mask at the best position; each is compared to its own mean over the mask."""
    weight = mask_1HW.expand_as(colours_CHW) / (3 * mask_1HW.sum())
    centred = (colours_CHW - (weight * colours_CHW).sum()) * weight
    energy = (weight * (colours_CHW - (weight * colours_CHW).sum()).square()).sum()
    covariance = _slide(pixels_1CHW, centred)
    mean = _slide(pixels_1CHW, weight)
    variance = (_slide(pixels_1CHW.square(), weight) - mean.square()).clamp_min(1e-3)
    return float((covariance / (variance * energy).sqrt()).max())


def _slide(image_1CHW: Tensor, kernel_Chw: Tensor) -> Tensor:
    """Sum of image times kernel at every position where the kernel lies inside, (1, H - h + 1, W - w + 1).

    What F.conv2d computes, by the Fourier transform: kernels as large as these are many times faster so.
    """
    (height, width), (rows, columns) = image_1CHW.shape[-2:], kernel_Chw.shape[-2:]
    image, kernel = (torch.fft.rfft2(part, s=(height, width)) for part in (image_1CHW, kernel_Chw))
    product = torch.fft.irfft2((image * kernel.conj()).sum(1), s=(height, width))
    return product[..., : height - rows + 1, : width - columns + 1]


def mean_score(images: Sequence[Path]) -> float:
    """Mean `concept_score` of image files."""
    scores = []
    for path in images:
        with Image.open(path) as image:
            scores.append(concept_score(image))
    return sum(scores) / len(scores)
