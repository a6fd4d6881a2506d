"""What pictures have in common, without any encoder: colour, edges, structure. And whether one is a copy of another.

These compare surfaces, not meaning: a red apple is like a red ball. N pictures, M others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[np.float64]
BINS = 8
"""Of each colour channel."""
ORIENTATIONS, EDGE_CELLS = 9, 4
"""Of gradients, in a grid of 4 x 4 cells, as histograms of oriented gradients have them (Dalal & Triggs, CVPR 2005)."""
STRUCTURE = 16
"""Side of the grey thumbnail whose layout is compared."""
COPY_SIDE = 32
COPY_CORRELATION = 0.95
"""Thumbnails that agree by less than this are no copies."""
COPY_RATIO = 0.5
COPY_NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Statistics of one picture. Unit vectors, or zeros for a picture of one colour."""

    colour: Array
    """Histogram over BINS^3 colours, sums to 1."""
    edges: Array
    structure: Array
    thumbnail: Array
    """(COPY_SIDE, COPY_SIDE, 3) in [0, 1]."""


def image_features(path: Path) -> ImageFeatures:
    with Image.open(path) as image:
        return describe(image)


def describe(image: Image.Image) -> ImageFeatures:
    """The picture is taken as it is seen: turned by its EXIF tag, laid on white."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    picture = Image.alpha_composite(white, upright).convert("RGB")
    return ImageFeatures(
        colour=_colours(_pixels(picture, 64)),
        edges=_edges(_pixels(picture.convert("L"), 128)),
        structure=_unit(_centred(_pixels(picture.convert("L"), STRUCTURE))),
        thumbnail=_pixels(picture, COPY_SIDE),
    )


def _pixels(picture: Image.Image, side: int) -> Array:
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255


def _centred(values: Array) -> Array:
    return values.reshape(-1) - values.mean()


def _unit(values: Array) -> Array:
    norm = np.linalg.norm(values)
    return values / norm if norm > 1e-6 else np.zeros_like(values)


def _colours(pixels_HW3: Array) -> Array:
    """Each pixel is shared between the eight bins around its colour, so that a shade more moves it a little only."""
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


def likeness(first: ImageFeatures, second: ImageFeatures) -> dict[str, float]:
    """{"colour", "edges", "structure"}, each 0 (nothing in common) to 1 (equal)."""
    return {
        "colour": float(np.minimum(first.colour, second.colour).sum()),
        "edges": _cosine(first.edges, second.edges),
        "structure": (1 + _cosine(first.structure, second.structure)) / 2,
    }


def _cosine(first: Array, second: Array) -> float:
    """Of unit vectors; two flat pictures are alike, a flat one and another are not."""
    if not first.any() and not second.any():
        return 1.0
    return float(np.clip(first @ second, -1, 1))


class Statistics:
    """Stands in where there is no encoder. A picture's features are its `ImageFeatures`."""

    name = "colour, edge and structure statistics (no encoder)"

    def pictures(self, paths: Sequence[Path]) -> list[ImageFeatures]:
        return [image_features(path) for path in paths]

    def texts(self, prompts: Sequence[str]) -> list[ImageFeatures]:
        """None: statistics of pictures know no words."""
        return []

    def compare(self, first: Sequence[ImageFeatures], second: Sequence[ImageFeatures]) -> Array:
        """Mean of the three statistics, (N, M)."""
        return np.array([[sum(likeness(a, b).values()) / 3 for b in second] for a in first])


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training image that a picture is nearest to."""

    index: int
    correlation: float
    """Of the thumbnails, -1 to 1; the better of the image and its mirror image."""
    ratio: float
    """Its distance over the mean distance to the next nearest ones; nan with fewer than three images."""

    @property
    def is_copy(self) -> bool:
        return self.correlation >= COPY_CORRELATION and not self.ratio > COPY_RATIO


def nearest(picture: ImageFeatures, training: Sequence[ImageFeatures]) -> Nearest:
    """Whether a picture repeats a training image (memorisation).

    Near in itself is not enough where all images are much alike, so the distance is also set against that to the next
    nearest images, as Carlini et al. do for models of small images (arXiv 2301.13188). Raises ValueError without images.
    """
    both = [[_centred(t) for t in (look.thumbnail, look.thumbnail[:, ::-1])] for look in training]
    mine = _centred(picture.thumbnail)
    distances = np.array([min(float(np.linalg.norm(mine - t)) for t in ways) for ways in both])
    order = distances.argsort()
    index = int(order[0])
    others = distances[order[1 : 1 + COPY_NEIGHBOURS]]
    return Nearest(
        index=index,
        correlation=max(_cosine(_unit(mine), _unit(t)) for t in both[index]),
        ratio=float(distances[index] / others.mean()) if len(others) > 1 and others.mean() > 0 else float("nan"),
    )
