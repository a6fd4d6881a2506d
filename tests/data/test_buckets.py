"""Bucket laws: every size lands somewhere, near the asked area, on the step, and transposes transpose."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.data.buckets import Buckets, round_to
from lora_loom.trainer.errors import ConfigError

sizes = st.tuples(st.integers(200, 6000), st.integers(200, 6000)).filter(lambda s: 0.25 <= s[0] / s[1] <= 4)
settings = st.builds(
    Buckets,
    method=st.sampled_from(["pixel_area", "kohya", "off"]),
    resolution=st.sampled_from([512, 768, 1024]),
    step=st.sampled_from([16, 32, 64]),
    upscale=st.booleans(),
)


@given(buckets=settings, size=sizes)
def test_sides_are_multiples_and_the_crop_lies_inside(buckets, size):
    geometry = buckets.geometry(size)
    width, height = geometry.target
    assert width % buckets.step == height % buckets.step == 0
    assert geometry.resized[0] >= geometry.crop_left + width
    assert geometry.resized[1] >= geometry.crop_top + height
    assert min(geometry.crop_left, geometry.crop_top) >= 0


@given(buckets=settings, size=sizes)
def test_transpose_symmetry(buckets, size):
    assert buckets.target(size) == buckets.target(size[::-1])[::-1]


@given(size=sizes, resolution=st.sampled_from([512, 768, 1024]), step=st.sampled_from([16, 32, 64]))
def test_pixel_area_keeps_area_and_ratio(size, resolution, step):
    width, height = Buckets(method="pixel_area", resolution=resolution, step=step).target(size)
    edge, ratio = resolution, math.sqrt(size[0] / size[1])
    assert abs(width - edge * ratio) <= step / 2
    assert abs(height - edge / ratio) <= step / 2


@given(size=sizes)
def test_resizing_covers_the_bucket_tightly(size):
    geometry = Buckets(method="pixel_area", resolution=512, step=64).geometry(size)
    slack = (geometry.resized[0] - geometry.target[0], geometry.resized[1] - geometry.target[1])
    assert min(slack) == 0, "the tighter side fits exactly"
    assert abs(geometry.resized[0] / size[0] - geometry.resized[1] / size[1]) < 0.01, "the image keeps its proportions"


def test_kohya_worked_list():
    """sd-scripts at 512: 64-multiples with the largest partner below 512^2, both ways, and the square."""
    found = Buckets(method="kohya", resolution=512, step=64, min_side=256, max_side=1024).kohya_list
    assert (512, 512) in found
    assert (256, 1024) in found
    assert (384, 640) in found
    assert (640, 384) in found
    assert all(w * h <= 512**2 and min(w, h) >= 256 and max(w, h) <= 1024 for w, h in found)


def test_kohya_takes_the_nearest_ratio():
    buckets = Buckets(method="kohya", resolution=512, step=64, min_side=256, max_side=1024)
    assert buckets.target((1000, 1000)) == (512, 512)
    assert buckets.target((1920, 1080)) == (640, 384)
    assert buckets.target((640, 384)) == (640, 384)


def test_no_upscale():
    small = (300, 200)
    assert Buckets(method="kohya", resolution=512, step=64, upscale=False).target(small) == (256, 192)
    width, height = Buckets(method="pixel_area", resolution=512, step=16, upscale=False).target(small)
    assert (width, height) == (304, 208)
    assert Buckets(method="pixel_area", resolution=512, step=16).target(small)[0] > 512


def test_resolution_below_the_step():
    with pytest.raises(ConfigError, match=r"data\.resolution = 32: smaller than the bucket step of 64"):
        Buckets(method="off", resolution=32, step=64)


@given(value=st.floats(1, 5000), step=st.sampled_from([8, 64]))
def test_round_to(value, step):
    assert round_to(value, step) % step == 0
    assert abs(round_to(value, step) - value) <= max(step / 2, step - value) + 1e-6
