"""From folders to examples: roles, held-out share, digests, and what the fast index spares."""

import os
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.images import index as index_module
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.report import epochs_text, make_report
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.errors import ConfigError, DataError
from tests.conftest import pictures


def silent(done, total):
    pass


def build(tmp_path, sets=None, seed=0, **data):
    sets = sets or [DatasetConfig(folder=str(pictures()))]
    return build_dataset(sets, DataConfig(resolution=64, **data), 16, seed, FileIndex(tmp_path / "files.json"), silent)


def test_every_image_becomes_an_example(tmp_path):
    dataset = build(tmp_path)
    assert [example.path.name for example in dataset.examples] == [f"{i}.png" for i in range(6)]
    assert dataset.examples[0].geometry.target == (64, 64)
    assert dataset.examples[1].geometry.target == (80, 48), "96 x 64 at the area of 64 x 64"
    assert "" in dataset.captions


def test_held_out_share_is_seeded(tmp_path):
    chosen = [{e.path.name for e in build(tmp_path, seed=seed, validation_split=0.34).held_out} for seed in range(6)]
    assert all(len(names) == 2 for names in chosen)
    assert chosen[0] == {e.path.name for e in build(tmp_path, seed=0, validation_split=0.34).held_out}
    assert len({frozenset(names) for names in chosen}) > 1


def test_held_out_share_must_leave_something(tmp_path):
    with pytest.raises(DataError, match="of 6 images is 0"):
        build(tmp_path, validation_split=0.01)
    with pytest.raises(DataError, match="of 6 images is 6"):
        build(tmp_path, validation_split=0.99)


def test_roles_and_options_reach_the_examples(tmp_path):
    folder = str(pictures())
    sets = [
        DatasetConfig(folder=folder, repeats=3, weight=0.5, caption_dropout=0.2, flip=True),
        DatasetConfig(folder=folder, role="regularisation", teacher="base"),
        DatasetConfig(folder=folder, role="validation"),
    ]
    dataset = build(tmp_path, sets)
    first = dataset.examples[0]
    assert (first.repeats, first.weight, first.caption_dropout, first.may_flip) == (3, 0.5, 0.2, True)
    assert len(dataset.training) == 12
    assert [e.teacher for e in dataset.examples] == ["images"] * 6 + ["base"] * 6 + ["images"] * 6
    assert len(dataset.held_out) == 6
    text = make_report(dataset).text() + epochs_text(make_report(dataset), batch_size=2, accumulation=1, steps=24)
    assert "per epoch: 24 images in 12 batches = 12 steps" in text
    assert "24 steps are 2.0 epochs" in text
    assert "bucket 80 x 48: 12 per epoch" in text


def test_enlarged_images_are_named(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "dot.png")
    dataset = build(tmp_path, [DatasetConfig(folder=str(folder))])
    assert "smaller than their bucket and are upscaled: dot.png" in make_report(dataset).text()


def test_digest_follows_content_not_place(tmp_path):
    before = build(tmp_path).digest
    moved = tmp_path / "moved"
    shutil.copytree(pictures(), moved)
    assert build(tmp_path, [DatasetConfig(folder=str(moved))]).digest == before
    (moved / "0.png").rename(moved / "9.png")
    (moved / "0.txt").rename(moved / "9.txt")
    assert build(tmp_path, [DatasetConfig(folder=str(moved))]).digest != before, "another order gives other batches"
    (moved / "9.png").rename(moved / "00.png")
    (moved / "9.txt").rename(moved / "00.txt")
    assert build(tmp_path, [DatasetConfig(folder=str(moved))]).digest == before, "the same order under other names"
    (moved / "00.txt").write_text("another caption")
    changed = build(tmp_path, [DatasetConfig(folder=str(moved))]).digest
    assert changed != before
    Image.new("RGB", (64, 64)).save(moved / "1.png")
    assert build(tmp_path, [DatasetConfig(folder=str(moved))]).digest not in (before, changed)
    assert build(tmp_path, [DatasetConfig(folder=str(pictures()), repeats=2)]).digest != before


def test_an_unknown_background_stops_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "probe", lambda path, content: pytest.fail(f"read {path}"))
    with pytest.raises(ConfigError, match=r"dataset\.background = 'whitee': use a colour name"):
        build(tmp_path, [DatasetConfig(folder=str(pictures()), background="whitee")])


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.setattr(index_module, "probe", lambda path, content: pytest.fail(f"read {path}"))
    build(tmp_path)


def test_a_touched_file_is_read_again(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pictures(), folder)
    first = build(tmp_path, [DatasetConfig(folder=str(folder))])
    path = folder / "0.png"
    Image.new("RGB", (64, 64), "red").save(path)
    os.utime(path, ns=(1, 1))
    second = build(tmp_path, [DatasetConfig(folder=str(folder))])
    changed = [a.path.name for a, b in zip(first.examples, second.examples, strict=True) if a.digest != b.digest]
    assert changed == ["0.png"]


def test_unreadable_files_are_all_named(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pictures(), folder)
    for name in ("2.png", "4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    dataset = build(tmp_path, [DatasetConfig(folder=str(folder))])
    assert [path.name for path, _ in dataset.unreadable] == ["2.png", "4.png"]
    assert len(dataset.examples) == 4
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"(?s)no image is left to train on.*2\.png is damaged.*4\.png is damaged"):
        build(tmp_path, [DatasetConfig(folder=str(folder))])


def test_damaged_index_is_rebuilt(tmp_path):
    before = build(tmp_path).digest
    (tmp_path / "files.json").write_text('{"x": 3}')
    assert build(tmp_path).digest == before


def test_resolution_smaller_than_the_familys_step(tmp_path):
    with pytest.raises(ConfigError, match="smaller than the bucket step of 128"):
        build_dataset(
            [DatasetConfig(folder=str(pictures()))],
            DataConfig(resolution=64),
            128,
            0,
            FileIndex(tmp_path / "f.json"),
            silent,
        )


def one_set(**options):
    return [DatasetConfig(folder=str(pictures()), **options)]


def test_several_resolutions_of_the_same_set(tmp_path):
    dataset = build(tmp_path, one_set(resolutions=(48, 64), megapixels=(0.01024,), repeats=2))
    assert len(dataset.examples) == 18
    square = [e.geometry.target for e in dataset.examples if e.path.name == "0.png"]
    assert square == [(48, 48), (64, 64), (96, 96)], "0.01024 million pixels are 101 x 101"
    assert "per epoch: 36 images" in epochs_text(make_report(dataset), 2, 1, 10)


def test_an_image_is_held_out_at_all_its_resolutions(tmp_path):
    sets = one_set(resolutions=(48, 64)) + one_set(resolutions=(96,))
    dataset = build(tmp_path, sets, validation_split=0.34)
    aside = {e.path for e in dataset.held_out}
    assert len(aside) == 2
    assert not aside & {e.path for e in dataset.training}
    assert len(dataset.held_out) == 6
    assert {e.path for e in build(tmp_path, validation_split=0.34).held_out} == aside, "the same share by the same seed"


def test_a_set_has_its_own_buckets(tmp_path):
    sets = one_set() + one_set(buckets="kohya", min_side=16, max_side=64, bucket_step=32, upscale=False)
    wide = [e.geometry.target for e in build(tmp_path, sets).examples if e.path.name == "1.png"]
    assert wide == [(80, 48), (64, 32)]
    assert build(tmp_path, one_set(buckets="pixel")).examples[1].geometry.target == (96, 64)
    assert build(tmp_path, buckets="pixel").examples[1].geometry.target == (96, 64)


def test_images_of_another_size_are_left_out_and_named(tmp_path):
    dataset = build(tmp_path, one_set(min_size=65, size_metric="area"))
    assert [e.path.name for e in dataset.examples] == ["1.png", "3.png", "5.png"]
    assert (
        "3 left out, smaller than min_size = 65: 0.png (64 x 64), 2.png (64 x 64), 4.png (64 x 64)"
        in make_report(dataset).text()
    )
    with pytest.raises(DataError, match="(?s)no image is left to train on.*6 left out, smaller than min_size = 65"):
        build(tmp_path, one_set(min_size=65))
    wide = build(tmp_path, one_set(min_aspect=1.2))
    assert [e.path.name for e in wide.examples] == ["1.png", "3.png", "5.png"]
    assert "3 left out, narrower than min_aspect = 1.2: 0.png (64 x 64)" in make_report(wide).text()
    assert (
        "3 left out, wider than max_aspect = 1: 1.png (96 x 64)"
        in make_report(build(tmp_path, one_set(max_aspect=1.0))).text()
    )
    assert "larger than max_size = 70" in make_report(build(tmp_path, one_set(max_size=70, size_metric="area"))).text()


def test_large_images_are_reduced_before_the_crop(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    Image.new("RGB", (400, 400)).save(folder / "a.png")
    Image.new("RGB", (100, 100)).save(folder / "b.png")
    sets = [DatasetConfig(folder=str(folder), max_size=200, downsample=128)]
    first, second = (e.geometry for e in build(tmp_path, sets).examples)
    assert (first.resized, first.target, first.crop_left) == ((128, 128), (64, 64), 32)
    assert second.resized == (64, 64)
    (exact, _) = (e.geometry for e in build(tmp_path, [replace(sets[0], max_size=400)]).examples)
    assert exact.resized == (64, 64), "an image of just that size is not too large"


def test_places_of_the_crop(tmp_path):
    def left(seed=0, **options):
        made = build(tmp_path, one_set(buckets="off", **options), seed=seed)
        return [e.geometry.crop_left for e in made.examples]

    assert left() == [0, 16, 0, 16, 0, 16]
    assert left(crop="corner") == [0] * 6
    assert left(crop="random") == left(crop="random")
    assert left(crop="random") != left(seed=1, crop="random")
    assert len(set(left(crop="random")[1::2])) > 1, "another place for every image"


def test_stretched_images_are_named(tmp_path):
    dataset = build(tmp_path, one_set(crop="none", buckets="off"))
    assert all(e.geometry.resized == e.geometry.target for e in dataset.examples)
    assert "3 images are stretched to their bucket, by up to 50%: 1.png, 3.png, 5.png" in make_report(dataset).text()
    assert "stretched" not in make_report(build(tmp_path, one_set(crop="none", buckets="pixel", bucket_step=16))).text()


def test_texts_are_known_in_advance_or_noted_to_be_drawn_each_time(tmp_path):
    folder = tmp_path / "tags"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("a, b, c, d, e")

    def made(**options):
        return build(tmp_path, [DatasetConfig(folder=str(folder), shuffle_tags=True, **options)])

    drawn = made(caption_variants=8)
    assert len(set(drawn.examples[0].captions)) == 8
    assert drawn.examples[0].captions[0] == "a, b, c, d, e"
    assert "captions of 1 images can take more forms than caption_variants = 8" in make_report(drawn).text()
    assert len(drawn.captions) == 9, "and the empty prompt"
    complete = made(caption_variants=120)
    assert len(set(complete.examples[0].captions)) == 120
    assert complete.notes == ()
    live = made(caption_variants=0)
    assert live.examples[0].captions == ("a, b, c, d, e",)
    assert live.examples[0].live is not None
    assert "a new caption is drawn and encoded each time an image is used" in make_report(live).text()
    assert len({drawn.digest, complete.digest, live.digest}) == 3


def test_held_out_images_are_measured_with_their_plain_caption(tmp_path):
    sets = one_set(shuffle_tags=True, caption_variants=0)
    [first, *_] = build(tmp_path, sets, validation_split=0.5).held_out
    assert first.live is None
    assert first.captions == ((pictures() / f"{first.path.stem}.txt").read_text().strip(),)


def test_a_drawn_shape_is_a_function_of_seed_image_and_resolution(tmp_path):
    """Each of the list as often, whatever the image's own; of no other image, and of no other set, anything changes."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (90, 90), (number, 4 * number % 255, 7)).save(folder / f"photo of a {number} thing.png")
    shapes = (1.0, 0.5, 2.0)
    one = DatasetConfig(folder=str(folder), aspects=shapes, aspect_choice="random", resolutions=(64, 96))

    def drawn(seed, *sets):
        made = build(tmp_path, list(sets), seed=seed).examples
        return {(e.path.name, e.geometry.target) for e in made}

    first = drawn(3, one)
    assert drawn(3, one) == first != drawn(4, one)
    assert len(first) == 120
    counts = [sum((w > h) - (w < h) == way for _, (w, h) in first) for way in (-1, 0, 1)]
    assert all(20 <= count <= 60 for count in counts), counts
    other = DatasetConfig(folder=str(pictures()))
    assert drawn(3, one, other) == first | drawn(3, other)
    (folder / "photo of a 0 thing.png").unlink()
    assert drawn(3, one) == {place for place in first if place[0] != "photo of a 0 thing.png"}


def test_a_drawn_shape_needs_a_list():
    with pytest.raises(
        ConfigError, match=r"dataset\.aspect_choice = 'random': name the shapes to draw from as dataset\.aspects"
    ):
        DatasetConfig(folder="x", aspect_choice="random")
