"""Variants of images: no corner is filled, colours follow their formulas, and what is cached is what is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_loom.nodes.sockets.values import example_from_json, example_to_json
from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.cache.fill import load_view
from lora_loom.trainer.data.cache.keys import views
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.load import load_pixels, resize_and_crop
from lora_loom.trainer.data.images.variants import inner_scale, recoloured, turned
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.types import Geometry, ImageVariant
from tests.conftest import pictures

SAME = ImageVariant(crop_left=0, crop_top=0)
LANCZOS = Image.Resampling.LANCZOS


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def placed(resized, target, left, top):
    return Geometry(original=resized, resized=resized, crop_left=left, crop_top=top, target=target)


@given(
    st.tuples(st.integers(16, 60), st.integers(16, 60)),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(-180, 180),
)
def test_no_corner_of_a_turned_crop_is_filled(target, spare, at, degrees):
    size = tuple(side + more for side, more in zip(target, spare, strict=True))
    place = placed(size, target, *(int(more * share) for more, share in zip(spare, at, strict=True)))
    shown = np.asarray(resize_and_crop(Image.new("RGB", size, "white"), place, LANCZOS, degrees))
    assert shown.shape == (target[1], target[0], 3)
    assert shown.min() == 255
    assert 0 < inner_scale(size, place, degrees) <= 1


@given(st.floats(-20, 20))
def test_where_there_is_room_a_turn_is_pillows(degrees):
    image = noise(96, 96)
    place = placed(image.size, (32, 32), 32, 32)
    assert inner_scale(image.size, place, degrees) == 1
    whole = image.rotate(degrees, Image.Resampling.BICUBIC).crop((32, 32, 64, 64))
    assert np.abs(np.asarray(turned(image, place, degrees, LANCZOS), int) - np.asarray(whole, int)).max() <= 1


def test_the_part_that_is_shown_is_the_largest_inside():
    """Of a square turned by 45 degrees the inner square has half its diagonal as its side."""
    place = placed((64, 64), (64, 64), 0, 0)
    assert inner_scale((64, 64), place, 45) == pytest.approx(2**-0.5)
    assert inner_scale((64, 64), place, 90) == pytest.approx(1)
    assert inner_scale((80, 64), placed((80, 64), (80, 64), 0, 0), 90) == pytest.approx(64 / 80)


def test_colours_follow_their_formulas():
    image = noise(8, 8)
    values = np.asarray(image, float)
    grey = np.asarray(image.convert("L"), float)[..., None]
    for name, from_ in (("brightness", 0.0), ("contrast", round(grey.mean())), ("saturation", grey)):
        for factor in (0.6, 1.4):
            changed = np.asarray(recoloured(image, replace(SAME, **{name: factor})), float)
            wanted = (from_ + factor * (values - from_)).clip(0, 255)
            assert np.abs(changed - wanted).max() <= 1, name
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert np.abs(np.asarray(recoloured(red, replace(SAME, hue=120.0)), int) - [0, 255, 0]).max() <= 6
    assert np.abs(np.asarray(recoloured(red, replace(SAME, hue=-120.0)), int) - [0, 0, 255]).max() <= 6
    assert recoloured(image, SAME) is image


def build(tmp_path, **options):
    sets = [DatasetConfig(folder=str(pictures()), **options)]
    return build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)


CHANGES = {"random_rotation": 10.0, "random_brightness": 0.2, "random_hue": 30.0}


def test_variants_are_seeded_and_more_of_them_leave_the_others(tmp_path):
    four, eight = (build(tmp_path, **CHANGES, image_variants=count).examples[1] for count in (4, 8))
    assert eight.variants[:4] == four.variants
    assert len(set(eight.variants)) == 8
    assert all(abs(one.rotation) <= 10 and abs(one.brightness - 1) <= 0.2 for one in eight.variants)
    assert len(build(tmp_path, **CHANGES).examples[0].variants) == 8
    assert "4 variants of each image are cached" in build(tmp_path, **CHANGES, image_variants=4).about[-1]
    assert build(tmp_path, **CHANGES, role="train").held_out == []


def test_the_first_variant_is_the_image_and_flips_double_them(tmp_path):
    plain = build(tmp_path).examples[1]
    varied = build(tmp_path, **CHANGES, flip=True, image_variants=3).examples[1]
    keys = [view.key("vae") for view in views(varied)]
    assert keys[0] == views(plain)[0].key("vae")
    assert len(set(keys)) == 6
    shown = load_view(views(varied)[1]).pixels_CHW
    assert torch.equal(shown, load_pixels(varied.path, varied.geometry, variant=varied.variants[1]))
    assert not torch.equal(shown, load_view(views(varied)[0]).pixels_CHW)
    assert torch.equal(load_view(views(varied)[4]).pixels_CHW, shown.flip(-1))


def test_a_mask_turns_with_its_image(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (32, 0, 64, 64))
    image.save(folder / "a.png")
    (folder / "a.txt").write_text("half")
    sets = [DatasetConfig(folder=str(folder), masks="alpha", background="black", random_rotation=40.0)]
    data = build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
    for view in views(data.examples[0]):
        loaded = load_view(view)
        assert (loaded.mask_1HW[0] - (loaded.pixels_CHW[0] + 1) / 2).abs().mean() < 0.02


def test_random_crops_may_be_several(tmp_path):
    one = build(tmp_path, crop="random", buckets="off").examples[1]
    many = build(tmp_path, crop="random", buckets="off", image_variants=5).examples[1]
    assert one.variants == ()
    assert many.geometry == one.geometry
    assert len({view.geometry.crop_left for view in views(many)}) > 1
    assert views(many)[0].key("vae") == views(one)[0].key("vae")


def test_a_digest_without_variants_is_what_it_was(tmp_path):
    """Runs of earlier versions have this digest of their images."""
    assert build(tmp_path).digest != build(tmp_path, **CHANGES).digest
    from lora_loom.trainer.data.sets.dataset import _facts

    assert "variants" not in _facts(build(tmp_path).examples[0])


def test_the_graph_keeps_variants_in_its_listing(tmp_path):
    example = build(tmp_path, **CHANGES).examples[0]
    assert example_from_json(example_to_json(example)) == example
    older = {name: value for name, value in example_to_json(example).items() if name != "variants"}
    assert example_from_json(older).variants == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random_brightness": 1.5}, "random_brightness = 1.5: use 0 .off. to 1"),
        ({"random_rotation": 200.0}, "use 0 to 180 degrees"),
        ({"image_variants": 1}, "use 0 .8 with random colours or turns. or 2 to 1000"),
        ({"random_hue": 5.0, "references": "other"}, "would no longer match its reference image"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        DatasetConfig(folder="x", **options).check()
