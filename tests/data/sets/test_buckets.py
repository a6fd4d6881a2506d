"""Bucket laws: every size lands somewhere, near the asked area, on the step, and transposes transpose."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.data.sets.buckets import CENTER, Buckets, measured, round_to
from lora_loom.trainer.errors import ConfigError

sizes = st.tuples(st.integers(200, 6000), st.integers(200, 6000)).filter(lambda s: 0.25 <= s[0] / s[1] <= 4)
settings = st.builds(
    Buckets,
    method=st.sampled_from(["pixel_area", "pixel", "kohya", "off"]),
    resolution=st.sampled_from([512, 768, 1024]),
    step=st.sampled_from([16, 32, 64]),
    upscale=st.booleans(),
    aspects=st.sampled_from([(), (1.0,), (0.5, 0.75, 1.0, 4 / 3, 2.0)]),
)
anywhere = st.sampled_from([CENTER, (0.0, 0.0), (0.5, 0.0), (0.999, 0.3), None])


@given(buckets=settings, size=sizes, at=anywhere, least_scale=st.floats(0, 1.5))
def test_sides_are_multiples_and_the_crop_lies_inside(buckets, size, at, least_scale):
    geometry = buckets.geometry(size, at=at, least_scale=least_scale)
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


@given(size=sizes, resolution=st.sampled_from([512, 768, 1024]), step=st.sampled_from([16, 32, 64]))
def test_pixel_gives_the_shorter_side_and_keeps_the_ratio(size, resolution, step):
    width, height = Buckets(method="pixel", resolution=resolution, step=step).target(size)
    assert min(width, height) == resolution
    assert abs(max(width, height) - resolution * max(size) / min(size)) <= step / 2 + 1e-6
    assert (width > height) <= (size[0] > size[1])


@given(buckets=settings, size=sizes)
def test_areas_stay_within_bounds(buckets, size):
    """Of the asked area: exactly for the square, half a step per side for pixel_area, never more for kohya's list."""
    width, height = buckets.target(size)
    area, slack = buckets.resolution**2, buckets.step / 2
    if buckets.method == "off":
        assert width * height == area
    elif buckets.method == "kohya":
        assert width * height <= area
    elif buckets.method == "pixel_area":
        edge = buckets.resolution if buckets.upscale else min(buckets.resolution, math.sqrt(size[0] * size[1]))
        assert (width - slack) * (height - slack) <= edge**2 + 1e-6
        assert (width + slack) * (height + slack) >= edge**2 - 1e-6


@given(size=sizes)
def test_aspects_are_the_nearest_of_the_list(size):
    ratios = (0.5, 1.0, 2.0)
    width, height = Buckets(method="pixel_area", resolution=1024, step=16, aspects=ratios).target(size)
    own = math.log(size[0] / size[1])
    nearest = min(ratios, key=lambda one: abs(math.log(one) - own))
    assert abs(width / height - nearest) < 0.05


@given(size=sizes)
def test_without_a_crop_nothing_is_cut_off(size):
    geometry = Buckets(method="kohya", resolution=512, step=64).geometry(size, at=None)
    assert geometry.resized == geometry.target
    assert (geometry.crop_left, geometry.crop_top) == (0, 0)


def test_places_of_the_crop():
    buckets = Buckets(method="off", resolution=64, step=64)
    wide = (128, 64)
    assert buckets.geometry(wide, at=(0.0, 0.0)).crop_left == 0
    assert buckets.geometry(wide).crop_left == 32
    assert buckets.geometry(wide, at=(0.999, 0.0)).crop_left == 63
    part = buckets.geometry((640, 640), least_scale=0.2)
    assert (part.resized, part.crop_left, part.crop_top) == ((128, 128), 32, 32)


def test_what_is_measured():
    assert measured((400, 100), "side") == 100
    assert measured((400, 100), "area") == 200


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


def test_kohya_takes_the_larger_of_two_buckets_that_are_equally_near():
    """The ratio of the image is as far from 3 as from 4, as nearly as whole sides can say it."""
    buckets = Buckets(method="kohya", resolution=512, step=256, min_side=256, max_side=1024)
    assert {(768, 256), (1024, 256)} <= set(buckets.kohya_list)
    assert buckets.target((121_635, 35_113)) == (1024, 256)
    assert buckets.target((35_113, 121_635)) == (256, 1024)


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
