"""Laws of the statistics that stand in for an encoder, and planted copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from lora_loom.trainer.demo.scenes import random_scene
from lora_loom.trainer.score.image_statistics import StatisticsEncoder, describe, nearest, similarity


def picture(seed, side=48):
    import random

    return random_scene(random.Random(seed)).draw().resize((side, side))


def noisy(image, amount, seed=0):
    pixels = np.asarray(image, dtype=float) + np.random.default_rng(seed).normal(0, amount, (*image.size[::-1], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@given(first=st.integers(0, 500), second=st.integers(0, 500))
@settings(max_examples=25)
def test_likeness_is_one_to_oneself_symmetric_and_bounded(first, second):
    a, b = describe(picture(first)), describe(picture(second))
    assert all(value == pytest.approx(1) for value in similarity(a, a).values())
    there, back = similarity(a, b), similarity(b, a)
    assert there == pytest.approx(back)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in there.values())


@given(seed=st.integers(0, 500))
@settings(max_examples=15)
def test_each_statistic_sees_its_own_thing(seed):
    image = picture(seed, 64)
    plain = describe(image)
    pixels = np.asarray(image).reshape(-1, 3)
    shuffled = Image.fromarray(np.random.default_rng(seed).permutation(pixels).reshape(64, 64, 3))
    assert similarity(plain, describe(shuffled))["colour"] == pytest.approx(1), "colour does not ask where"
    grey = describe(ImageOps.grayscale(image).convert("RGB"))
    assert similarity(plain, grey)["structure"] == pytest.approx(1, abs=1e-3), "structure does not ask for hue"
    assert similarity(plain, grey)["edges"] == pytest.approx(1, abs=1e-3)
    darker = describe(ImageEnhance.Brightness(image).enhance(0.8))
    assert similarity(plain, darker)["structure"] > 0.99, "nor for brightness"
    turned = describe(image.transpose(Image.Transpose.ROTATE_90))
    assert similarity(plain, turned)["colour"] == pytest.approx(1, abs=1e-6)


def test_flat_pictures():
    red, blue = (describe(Image.new("RGB", (20, 30), colour)) for colour in ("red", "blue"))
    assert similarity(red, red) == pytest.approx({"colour": 1, "edges": 1, "structure": 1})
    assert similarity(red, blue)["colour"] == 0
    assert similarity(red, describe(picture(1)))["edges"] == 0


def test_a_shade_is_a_small_step():
    first, second, far = (describe(Image.new("RGB", (8, 8), (v, 90, 90))) for v in (100, 104, 250))
    assert 0.8 < similarity(first, second)["colour"] < 1
    assert similarity(first, far)["colour"] < 0.3


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    white = Image.new("RGB", (16, 16), "white")
    assert similarity(describe(clear), describe(white))["colour"] == pytest.approx(1)


TRAINING = [describe(picture(seed)) for seed in range(20, 32)]


@pytest.mark.parametrize("change", [
    lambda image: image,
    lambda image: noisy(image, 5),
    ImageOps.mirror,
    lambda image: image.resize((128, 128)),
    lambda image: ImageEnhance.Brightness(image).enhance(0.93),
], ids=["same", "noise", "mirror", "enlarged", "darker"])  # fmt: skip
@pytest.mark.parametrize("seed", [20, 25, 31])
def test_planted_copies_are_found(seed, change):
    found = nearest(describe(change(picture(seed))), TRAINING)
    assert found.index == seed - 20
    assert found.is_copy


def test_new_pictures_are_no_copies():
    assert not any(nearest(describe(picture(seed)), TRAINING).is_copy for seed in range(100, 140))


def test_near_is_not_enough_where_all_images_are_alike():
    """A set of near equal images: a new one of them is near to all, and so a copy of none."""
    alike = [describe(noisy(picture(3), 6, seed)) for seed in range(8)]
    found = nearest(describe(noisy(picture(3), 6, 99)), alike)
    assert found.correlation > 0.95
    assert not found.is_copy


def test_the_table_of_a_set(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.png")
        picture(seed).save(paths[-1])
    statistics = StatisticsEncoder()
    looks = statistics.images(paths)
    table = statistics.compare(looks[:2], looks)
    assert table.shape == (2, 3)
    assert table[0, 0] == table[1, 1] == pytest.approx(1)
    assert statistics.texts(["a"]) == []
