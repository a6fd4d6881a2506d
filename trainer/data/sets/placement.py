"""The buckets of a set, and how an image is resized and cropped to each of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ...config.dataset import USUAL_VARIANTS, DataConfig, DatasetConfig
from ...seeding import uniform
from ...types import Geometry, ImageVariant, Size
from ..images.faces import face_position
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
    """How an image is resized and cropped, once per resolution. A random crop and a drawn shape are determined by the seed and the
    image's content."""
    size = known.size
    value, least_scale = measured(size, config.size_metric), 0.0
    if config.downsample and value > config.max_size:
        least_scale = config.downsample / value
    geometries = []
    for own in buckets:
        bucket = own
        if config.aspect_choice == "random":
            drawn = uniform(seed, "aspect", known.digest, own.resolution)
            bucket = replace(own, aspects=(own.aspects[int(drawn * len(own.aspects))],))
        at = PLACES.get(config.crop, CENTER)
        if config.crop == "random":
            key = (seed, "crop", known.digest, bucket.resolution)
            at = (uniform(*key, "left"), uniform(*key, "top"))
        elif config.crop == "saliency":
            middle = bucket.geometry(size, least_scale=least_scale)
            at = crop_position(known.focus, middle.resized, middle.target)
        elif config.crop == "face":
            middle = bucket.geometry(size, least_scale=least_scale)
            at = face_position(known.face, middle.resized, middle.target) or PLACES["top"]
        geometries.append(bucket.geometry(size, at=at, least_scale=least_scale))
    return tuple(geometries)


def variant_count(config: DatasetConfig) -> int:
    """How many variants of each image a set trains; 1: the image itself alone."""
    if config.changes_images:
        return config.image_variants or USUAL_VARIANTS
    return (config.image_variants if config.crop == "random" else 0) or 1


def image_variants(known: FileFacts, config: DatasetConfig, place: Geometry, seed: int) -> tuple[ImageVariant, ...]:
    """The variants of an image at one size, itself first; () where a set asks for none. They are determined by the seed, the
    image's content and their number, so that more of them leave the others as they were."""
    if variant_count(config) == 1:
        return ()
    made = [ImageVariant(crop_left=place.crop_left, crop_top=place.crop_top)]
    for number in range(1, variant_count(config)):
        draw = partial(uniform, seed, "image variant", known.digest, place.target[0], place.target[1], number)
        made.append(_drawn(config, place, draw))
    return tuple(made)


def _drawn(config: DatasetConfig, place: Geometry, draw: Callable[[str], float]) -> ImageVariant:
    """One variant; `draw` gives a number in [0, 1) for each purpose."""

    def between(name: str, most: float) -> float:
        return most * (2 * draw(name) - 1)

    left, top = place.crop_left, place.crop_top
    if config.crop == "random":
        spare = [whole - part for whole, part in zip(place.resized, place.target, strict=True)]
        left, top = int(spare[0] * draw("left")), int(spare[1] * draw("top"))
    return ImageVariant(
        crop_left=left,
        crop_top=top,
        rotation=between("rotation", config.random_rotation),
        brightness=1 + between("brightness", config.random_brightness),
        contrast=1 + between("contrast", config.random_contrast),
        saturation=1 + between("saturation", config.random_saturation),
        hue=between("hue", config.random_hue),
    )


def stretched(geometry: Geometry) -> float:
    """How much an image is stretched in one direction relative to the other, as a share; 0 where its proportions are kept."""
    across = geometry.resized[0] / geometry.original[0]
    down = geometry.resized[1] / geometry.original[1]
    return max(across / down, down / across) - 1
