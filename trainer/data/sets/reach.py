"""Buckets that are longer than a network's positions reach are refused before anything is encoded."""

import math
from collections.abc import Sequence

from ...errors import DataError, some
from ...types import Example


def refuse_long_sides(examples: Sequence[Example], longest: int, model: str) -> None:
    """Raise DataError naming the images whose bucket has a side above `longest` pixels; 0 sets no limit."""
    if not longest:
        return
    over = [example for example in examples if max(example.geometry.target) > longest]
    if not over:
        return
    names = list(
        dict.fromkeys(f"{one.path.name} ({one.geometry.target[0]} x {one.geometry.target[1]})" for one in over)
    )
    edge = max((one.geometry.target[0] * one.geometry.target[1]) ** 0.5 for one in over)
    ratio = math.floor(10 * (longest / edge) ** 2) / 10
    remedy = "use a lower resolution"
    if ratio > 1:
        shape = f"dataset.max_aspect = {ratio:g} and min_aspect = {1 / ratio:.3f} leave such images out"
        remedy = f"crop them, {remedy}, or {shape}"
    raise DataError(f"{len(names)} images have a bucket with a side above {longest} pixels, where the positions of {model} end: {some(names)}: {remedy}")  # fmt: skip
