"""Aspect buckets: which size an image is trained at, and how it is resized and cropped to it. Integers only.

pixel_area (SimpleTuner): the image's own aspect ratio at a given area, sides rounded to a step; pixel: at a given shorter
side. kohya (sd-scripts): the nearest ratio of a fixed list. Sizes are (width, height) in pixels.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from ...errors import ConfigError
from ...types import Geometry, Size

CENTER = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Buckets:
    method: str
    """pixel_area, pixel, kohya or off."""
    resolution: int
    """Side of the square whose area every bucket has; with pixel the shorter side of every bucket."""
    step: int
    """Sides are multiples of this."""
    min_side: int = 256
    max_side: int = 2048
    upscale: bool = True
    aspects: tuple[float, ...] = ()
    """Ratios of width and height to choose from (pixel_area, pixel); empty keeps the image's own."""

    def __post_init__(self) -> None:
        if self.resolution < self.step:
            raise ConfigError(
                f"data.resolution = {self.resolution}: smaller than the bucket step of {self.step} pixels; use at least {self.step}"
            )

    def target(self, size: Size) -> Size:
        """The bucket for an image of this size."""
        if self.method == "off":
            side = round_to(self.resolution, self.step)
            return (side, side)
        if self.method == "kohya":
            return self._kohya(size)
        return self._pixel(size) if self.method == "pixel" else self._pixel_area(size)

    def geometry(
        self, size: Size, *, flip: bool = False, at: tuple[float, float] | None = CENTER, least_scale: float = 0.0
    ) -> Geometry:
        """Resize to cover the bucket, then crop. `at` says where the spare pixels are cut off, as shares (0, 0) = all at
        the right and bottom; None stretches to the bucket instead. The scale of resizing is at least `least_scale`."""
        target = self.target(size)
        scale = max(target[0] / size[0], target[1] / size[1], least_scale)
        resized = (max(target[0], round(size[0] * scale)), max(target[1], round(size[1] * scale)))
        if at is None:
            resized, at = target, CENTER
        return Geometry(
            original=size,
            resized=resized,
            crop_left=int((resized[0] - target[0]) * at[0]),
            crop_top=int((resized[1] - target[1]) * at[1]),
            target=target,
            flip=flip,
        )

    def _aspect(self, size: Size) -> float:
        """Width / height of the bucket: the image's own, or the nearest of the list in log space."""
        own = size[0] / size[1]
        return min(self.aspects, key=lambda one: (round(abs(math.log(one / own)), 9), one), default=own)

    def _pixel_area(self, size: Size) -> Size:
        area = float(self.resolution**2)
        if not self.upscale:
            area = min(area, float(size[0] * size[1]))
        edge, ratio = math.sqrt(area), math.sqrt(self._aspect(size))
        return (round_to(edge * ratio, self.step), round_to(edge / ratio, self.step))

    def _pixel(self, size: Size) -> Size:
        edge, ratio = self.resolution if self.upscale else min(self.resolution, *size), self._aspect(size)
        return (round_to(edge * max(1.0, ratio), self.step), round_to(edge * max(1.0, 1 / ratio), self.step))

    @cached_property
    def kohya_list(self) -> list[Size]:
        """Every multiple of the step as one side, the largest other side within the area, and both ways round."""
        area = self.resolution**2
        square = self.resolution // self.step * self.step
        found = {(square, square)}
        for width in range(self._least, self.max_side + 1, self.step):
            height = min(self.max_side, area // width // self.step * self.step)
            if height >= self._least:
                found |= {(width, height), (height, width)}
        return sorted(found)

    @property
    def _least(self) -> int:
        """The shortest side that is a multiple of the step."""
        return max(self.step, math.ceil(self.min_side / self.step) * self.step)

    def _kohya(self, size: Size) -> Size:
        if not self.upscale and size[0] * size[1] <= self.resolution**2:
            return (max(self.step, size[0] // self.step * self.step), max(self.step, size[1] // self.step * self.step))
        if size in self.kohya_list:
            return size
        ratio = math.log(size[0] / size[1])
        # Nearest ratio in log space, so that an image and its transpose get transposed buckets; then the larger area.
        return min(self.kohya_list, key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1], b))


def measured(size: Size, measure: str) -> float:
    """The shorter side ("side"), or the side of the square of equal area ("area"), in pixels."""
    return math.sqrt(size[0] * size[1]) if measure == "area" else float(min(size))


def round_to(value: float, step: int) -> int:
    """The nearest multiple of `step`, halves up, at least one step."""
    return max(step, math.floor(value / step + 0.5) * step)
