"""Which buckets a set has, and how one of its images is placed in each of them."""

import math
from collections.abc import Sequence

from ...config.dataset import DataConfig, DatasetConfig
from ...seeding import uniform
from ...types import Geometry, Size
from ..images.index import FileFacts
from ..images.saliency import place
from .buckets import CENTER, Buckets, measured

PLACES = {"center": CENTER, "top": (0.5, 0.0), "corner": (0.0, 0.0), "none": None}


def buckets_of(config: DatasetConfig, data: DataConfig, step: int) -> list[Buckets]:
    """One entry per resolution of the set. `step` is the family's own. Raises ConfigError if a resolution is below it."""
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
    """Why the set does not take an image of this size and shape; "" if it does."""
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
    """How an image is resized and cropped, once per resolution. A random place follows from the seed and its content."""
    size = known.size
    value, least_scale = measured(size, config.size_metric), 0.0
    if config.downsample and value > config.max_size:
        least_scale = config.downsample / value
    made = []
    for one in buckets:
        at = PLACES.get(config.crop, CENTER)
        if config.crop == "random":
            key = (seed, "crop", known.digest, one.resolution)
            at = (uniform(*key, "left"), uniform(*key, "top"))
        elif config.crop == "saliency":
            middle = one.geometry(size, least_scale=least_scale)
            at = place(known.focus, middle.resized, middle.target)
        made.append(one.geometry(size, at=at, least_scale=least_scale))
    return tuple(made)


def stretched(geometry: Geometry) -> float:
    """How much wider or higher than in the original an image became, as a share; 0 where its proportions were kept."""
    across = geometry.resized[0] / geometry.original[0]
    down = geometry.resized[1] / geometry.original[1]
    return max(across / down, down / across) - 1
