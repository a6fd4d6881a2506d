"""Aspect-ratio buckets: the size that an image is trained at, and how it is resized and cropped to that size.

pixel_area (SimpleTuner) keeps the image's aspect ratio at a given area and rounds the sides to a step; pixel does so at a
given shorter side; kohya (sd-scripts) takes the nearest ratio of a fixed list. Sizes are (width, height) in pixels.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from ...errors import ConfigError
from ...types import Geometry, Size

CENTER = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """The rule that gives every image its bucket at one resolution. Raises ConfigError if the resolution is below `step`."""

    method: str
    """pixel_area, pixel, kohya or off."""
    resolution: int
    """Side in pixels of the square whose area every bucket has; with method pixel, the shorter side of every bucket."""
    step: int
    """Every side is a multiple of this number of pixels."""
    min_side: int = 256
    max_side: int = 2048
    upscale: bool = True
    aspects: tuple[float, ...] = ()
    """Ratios of width to height to choose from (pixel_area, pixel); empty keeps the image's own ratio."""

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
        """How an image of this size is resized to cover its bucket and then cropped.

        `at` is the crop position as shares of the spare pixels: (0, 0) keeps the top left corner, (0.5, 0.5) the centre.
        None stretches the image to the bucket instead. The scale of resizing is at least `least_scale`.
        """
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
        return min(self.aspects, key=lambda ratio: (round(abs(math.log(ratio / own)), 9), ratio), default=own)

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
        """The list of sd-scripts: every multiple of the step as one side, with the largest other side within the area, and transposed."""
        area = self.resolution**2
        square = self.resolution // self.step * self.step
        sizes = {(square, square)}
        for width in range(self._least, self.max_side + 1, self.step):
            height = min(self.max_side, area // width // self.step * self.step)
            if height >= self._least:
                sizes |= {(width, height), (height, width)}
        return sorted(sizes)

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
