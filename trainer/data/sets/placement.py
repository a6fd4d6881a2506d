"""The buckets of a set, and how an image is resized and cropped to each of them."""

import math
from collections.abc import Sequence

from ...config.dataset import DataConfig, DatasetConfig
from ...seeding import uniform
from ...types import Geometry, Size
from ..images.index import FileFacts
from ..images.saliency import crop_position
from .buckets import CENTER, Buckets, measured

PLACES = {"center": CENTER, "top": (0.5, 0.0), "corner": (0.0, 0.0), "none": None}


def buckets_of(config: DatasetConfig, data: DataConfig, step: int) -> list[Buckets]:
    """The buckets of a set, one entry per resolution. `step` is the family's bucket step in pixels.

    Raises ConfigError if a resolution is below the step.
    """
    areas = [round(math.sqrt(area * 1e6)) for area in config.megapixels]
    resolutions = list(dict.fromkeys([*config.resolutions, *areas])) or [data.resolution]
    return [
        Buckets(
            method=data.buckets if config.buckets == "inherit" else config.buckets,
            resolution=resolution,
            step=config.bucket_step or data.bucket_step or step,
            min_side=config.min_side or data.min_side,
            max_side=config.max_side or data.max_side,
            upscale=data.upscale if config.upscale is None else config.upscale,
            aspects=config.aspects,
        )
        for resolution in resolutions
    ]


def why_left_out(size: Size, config: DatasetConfig) -> str:
    """Why a set leaves out an image of this size and shape; "" if it does not."""
    value = measured(size, config.size_metric)
    if config.min_size and value < config.min_size:
        return f"smaller than min_size = {config.min_size}"
    if config.max_size and value > config.max_size and not config.downsample:
        return f"larger than max_size = {config.max_size}"
    aspect = size[0] / size[1]
    if config.min_aspect and aspect < config.min_aspect:
        return f"narrower than min_aspect = {config.min_aspect:g}"
    if config.max_aspect and aspect > config.max_aspect:
        return f"wider than max_aspect = {config.max_aspect:g}"
    return ""


def placements(known: FileFacts, config: DatasetConfig, buckets: Sequence[Buckets], seed: int) -> tuple[Geometry, ...]:
    """How an image is resized and cropped, once per resolution. A random crop is determined by the seed and the image's content."""
    size = known.size
    value, least_scale = measured(size, config.size_metric), 0.0
    if config.downsample and value > config.max_size:
        least_scale = config.downsample / value
    geometries = []
    for bucket in buckets:
        at = PLACES.get(config.crop, CENTER)
        if config.crop == "random":
            key = (seed, "crop", known.digest, bucket.resolution)
            at = (uniform(*key, "left"), uniform(*key, "top"))
        elif config.crop == "saliency":
            middle = bucket.geometry(size, least_scale=least_scale)
            at = crop_position(known.focus, middle.resized, middle.target)
        geometries.append(bucket.geometry(size, at=at, least_scale=least_scale))
    return tuple(geometries)


def stretched(geometry: Geometry) -> float:
    """How much an image is stretched in one direction relative to the other, as a share; 0 where its proportions are kept."""
    across = geometry.resized[0] / geometry.original[0]
    down = geometry.resized[1] / geometry.original[1]
    return max(across / down, down / across) - 1
