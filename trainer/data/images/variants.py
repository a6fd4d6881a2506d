"""Variants of an image: turned, with other colours, cropped elsewhere. Each is a value (`ImageVariant`); here it becomes pixels."""

import math

from PIL import Image, ImageEnhance

from ...types import Geometry, ImageVariant


def recoloured(image: Image.Image, variant: ImageVariant) -> Image.Image:
    """An RGB image with other brightness, contrast, saturation (factors) and hue (degrees), in this order.

    The four are those of torchvision's ColorJitter: a blend with black, with the mean grey, with the grey image, and a turn of
    the hue of HSV.
    """
    for factor, kind in (
        (variant.brightness, ImageEnhance.Brightness),
        (variant.contrast, ImageEnhance.Contrast),
        (variant.saturation, ImageEnhance.Color),
    ):
        if factor != 1:
            image = kind(image).enhance(factor)
    shift = round(variant.hue / 360 * 256) % 256
    if not shift:
        return image
    hue, *others = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point([(value + shift) % 256 for value in range(256)]), *others)).convert("RGB")


def turned(image: Image.Image, geometry: Geometry, degrees: float, resampling: Image.Resampling) -> Image.Image:
    """The crop of a resized image, turned about its middle, counterclockwise.

    No corner is filled: where the turned crop would leave the image it shows a smaller part of it instead, enlarged to the
    bucket, the largest part that lies inside.
    """
    scale, (x, y) = inner_scale(image.size, geometry, degrees), _middle(geometry)
    width, height = geometry.target
    angle = math.radians(degrees)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    left, top = x - (cos * width - sin * height) / 2, y - (sin * width + cos * height) / 2
    method = Image.Resampling.BILINEAR if resampling == Image.Resampling.BOX else Image.Resampling.BICUBIC
    return image.transform(geometry.target, Image.Transform.AFFINE, (cos, -sin, left, sin, cos, top), resample=method)


def inner_scale(size: tuple[int, int], geometry: Geometry, degrees: float) -> float:
    """Side of the part that a turned crop shows, relative to the crop's own: the largest, up to 1, that lies within an image of
    this size (width, height)."""
    angle, (width, height) = math.radians(degrees), geometry.target
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    needed = ((width * cos + height * sin) / 2, (width * sin + height * cos) / 2)
    there = [min(middle, side - middle) for middle, side in zip(_middle(geometry), size, strict=True)]
    return min(1.0, *(have / need for have, need in zip(there, needed, strict=True)))


def _middle(geometry: Geometry) -> tuple[float, float]:
    return geometry.crop_left + geometry.target[0] / 2, geometry.crop_top + geometry.target[1] / 2
