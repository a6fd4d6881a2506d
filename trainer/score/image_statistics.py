"""Similarity of images without an encoder, by colour, edges and structure; and whether an image is memorised.

The statistics compare surfaces, not meaning: a red apple is similar to a red ball. N images, M others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..data.images.load import flatten, opened
from ..types import Array

BINS = 8
"""Bins per colour channel."""
ORIENTATIONS, EDGE_CELLS = 9, 4
"""Histograms of oriented gradients in a grid of 4 x 4 (Dalal & Triggs, CVPR 2005)."""
STRUCTURE = 16
"""Side of the grey thumbnail that is compared, in pixels."""
COPY_SIDE = 32
COPY_CORRELATION = 0.95
"""Images whose thumbnails correlate by less than this are not copies."""
COPY_RATIO = 0.5
"""A copy is at most this share of the mean distance of the next nearest training images away."""
COPY_NEIGHBOURS = 10
"""How many next nearest images that mean is taken over."""


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Statistics of one image. Unit vectors, or zeros for an image of one colour."""

    colour: Array
    """Histogram over BINS^3 colours, sums to 1."""
    edges: Array
    structure: Array
    thumbnail: Array
    """(COPY_SIDE, COPY_SIDE, 3) in [0, 1]."""


def image_features(path: Path) -> ImageFeatures:
    """The statistics of an image file, as a viewer shows it."""
    with opened(path) as image:
        return describe(image)


def describe(image: Image.Image) -> ImageFeatures:
    """The statistics of an image as a viewer displays it: rotated by its EXIF tag, in sRGB, on white where it is transparent."""
    image = flatten(ImageOps.exif_transpose(image), (255, 255, 255))
    return ImageFeatures(
        colour=_colours(_pixels(image, 64)),
        edges=_edges(_pixels(image.convert("L"), 128)),
        structure=_unit(_centred(_pixels(image.convert("L"), STRUCTURE))),
        thumbnail=_pixels(image, COPY_SIDE),
    )


def _pixels(image: Image.Image, side: int) -> Array:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255


def _centred(values: Array) -> Array:
    return values.reshape(-1) - values.mean()


def _unit(values: Array) -> Array:
    norm = np.linalg.norm(values)
    return values / norm if norm > 1e-6 else np.zeros_like(values)


def _colours(pixels_HW3: Array) -> Array:
    """Each pixel is divided among the eight bins around its colour, so that a small change of colour changes them a little."""
    place = pixels_HW3.reshape(-1, 3) * (BINS - 1)
    low = np.minimum(place.astype(np.int64), BINS - 2)
    share = place - low
    histogram = np.zeros((BINS, BINS, BINS))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(np.array(corner), share, 1 - share), axis=1)
        np.add.at(histogram, tuple((low + corner).T), weight)
    return histogram.reshape(-1) / len(place)


def _edges(grey_HW: Array) -> Array:
    down, across = np.gradient(grey_HW)
    strength = np.hypot(down, across)
    direction = (np.arctan2(down, across) % np.pi) / np.pi * ORIENTATIONS
    side = len(grey_HW) // EDGE_CELLS
    histogram = np.zeros((EDGE_CELLS, EDGE_CELLS, ORIENTATIONS))
    rows, columns = (index // side for index in np.indices(grey_HW.shape))
    np.add.at(histogram, (rows, columns, direction.astype(np.int64) % ORIENTATIONS), strength)
    return _unit(histogram.reshape(-1))


def similarity(first: ImageFeatures, second: ImageFeatures) -> dict[str, float]:
    """Similarity by {"colour", "edges", "structure"}, each from 0 (nothing in common) to 1 (equal)."""
    return {
        "colour": float(np.minimum(first.colour, second.colour).sum()),
        "edges": _cosine(first.edges, second.edges),
        "structure": (1 + _cosine(first.structure, second.structure)) / 2,
    }


def _cosine(first: Array, second: Array) -> float:
    """The cosine of unit vectors; two images of one colour each are equal, one of them and another image are not."""
    if not first.any() and not second.any():
        return 1.0
    return float(np.clip(first @ second, -1, 1))


class StatisticsEncoder:
    """An image encoder without a network. The features of an image are its `ImageFeatures`."""

    name = "colour, edge and structure statistics (no encoder)"

    def images(self, paths: Sequence[Path]) -> list[ImageFeatures]:
        """The statistics of each image file."""
        return [image_features(path) for path in paths]

    def texts(self, prompts: Sequence[str]) -> list[ImageFeatures]:
        """An empty list: statistics cannot be compared with text."""
        return []

    def compare(self, first: Sequence[ImageFeatures], second: Sequence[ImageFeatures]) -> Array:
        """The mean of the three similarities, (N, M)."""
        return np.array([[sum(similarity(a, b).values()) / 3 for b in second] for a in first])


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training image that an image is nearest to."""

    index: int
    correlation: float
    """Correlation of the thumbnails, -1 to 1; the higher of the training image and its mirror image."""
    ratio: float
    """Distance to it, divided by the mean distance to the next nearest ones; nan with fewer than three images."""

    @property
    def is_copy(self) -> bool:
        """Whether the image counts as memorised."""
        return self.correlation >= COPY_CORRELATION and not self.ratio > COPY_RATIO


def nearest(image: ImageFeatures, training: Sequence[ImageFeatures]) -> Nearest:
    """The training image nearest to an image, to find memorised images.

    A small distance alone proves nothing in a dataset of similar images, so it is also compared with the distance to the
    next nearest images, as Carlini et al. do for models of small images (arXiv 2301.13188). Raises ValueError without
    training images.
    """
    both = [[_centred(t) for t in (look.thumbnail, look.thumbnail[:, ::-1])] for look in training]
    mine = _centred(image.thumbnail)
    distances = np.array([min(float(np.linalg.norm(mine - t)) for t in ways) for ways in both])
    order = distances.argsort()
    index = int(order[0])
    others = distances[order[1 : 1 + COPY_NEIGHBOURS]]
    return Nearest(
        index=index,
        correlation=max(_cosine(_unit(mine), _unit(t)) for t in both[index]),
        ratio=float(distances[index] / others.mean()) if len(others) > 1 and others.mean() > 0 else float("nan"),
    )
