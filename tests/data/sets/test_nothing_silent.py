"""Whatever lies in a set's folders is used, or stands in the report with the reason, before anything is encoded."""

import os

import pytest
from PIL import Image

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.report import make_report, refuse_warnings
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.data.sets.scan import scan
from lora_loom.trainer.errors import DataError

from .test_scan import put


def build(tmp_path, *sets):
    data = DataConfig(resolution=32, min_side=16)
    return build_dataset(sets, data, 16, 0, FileIndex(tmp_path / "files.json"), lambda *_: None)


def picture(path, mode="RGB", size=(40, 32), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def paired(tmp_path):
    """Two images with captions, and an empty folder for what belongs to them."""
    for name, colour in (("a", "red"), ("b", "blue")):
        picture(tmp_path / "images" / f"{name}.png", colour=colour).with_suffix(".txt").write_text(f"a {colour} one")
    (tmp_path / "twins").mkdir()
    return tmp_path / "images", tmp_path / "twins"


@pytest.mark.parametrize("option", ["masks", "references"])
def test_a_damaged_mask_or_reference_leaves_its_image_out_before_anything_is_encoded(tmp_path, paired, option):
    images, twins = paired
    picture(twins / "a.png", "L", colour=255)
    (twins / "b.png").write_bytes(b"no image")
    dataset = build(tmp_path, DatasetConfig(folder=str(images), **{option: str(twins)}))
    assert [example.path.name for example in dataset.examples] == ["a.png"]
    [(path, reason)] = dataset.unreadable
    assert path == images / "b.png"
    assert reason.startswith(f"{images / 'b.png'}: {twins / 'b.png'} is not an image that can be read")
    with pytest.raises(DataError, match=r"data\.strict: left out, .*b\.png"):
        refuse_warnings(make_report(dataset))


@pytest.mark.parametrize("option", ["masks", "references"])
def test_masks_and_references_of_no_image_are_named(tmp_path, paired, option):
    images, twins = paired
    for name in ("a", "b", "c"):
        picture(twins / f"{name}.png", "L", colour=255)
    picture(twins / "inner" / "d.png")
    one = DatasetConfig(folder=str(images), **{option: str(twins)})
    assert build(tmp_path, one).notes == (f"{twins}: 1 masks or reference images belong to no image: c.png",)
    other = tmp_path / "other"
    picture(other / "c.png").with_suffix(".txt").write_text("of another set")
    assert build(tmp_path, one, DatasetConfig(folder=str(other), **{option: str(twins)})).notes == ()


def test_odd_masks_are_named(tmp_path, paired):
    images, twins = paired
    picture(twins / "a.png", "L", colour=0)
    picture(twins / "b.png", "L", size=(32, 40), colour=255)
    notes = build(tmp_path, DatasetConfig(folder=str(images), masks=str(twins))).notes
    assert notes == (
        f"{images}: the masks of 1 images are black all over, so nothing of these images is trained: a.png",
        f"{images}: 1 masks have other proportions than their images and are stretched over them: b.png",
    )


def test_alpha_masks_that_are_none_are_named_also_with_an_index_that_never_looked(tmp_path, paired):
    images, _ = paired
    picture(images / "a.png", "RGBA", colour=(255, 0, 0, 0))
    build(tmp_path, DatasetConfig(folder=str(images)))
    notes = build(tmp_path, DatasetConfig(folder=str(images), masks="alpha")).notes
    assert notes == (
        f"{images}: the masks of 1 images are black all over, so nothing of these images is trained: a.png",
        f"{images}: 1 images have no transparency, so all of them is trained (masks = 'alpha'): b.png",
    )


def test_of_two_images_with_one_stem_each_has_its_own_mask(tmp_path):
    for folder in ("images", "masks"):
        for suffix in ("jpg", "png"):
            picture(tmp_path / folder / f"a.{suffix}")
    found = scan(DatasetConfig(folder=str(tmp_path / "images"), masks=str(tmp_path / "masks"), captions="filename"))
    assert [image.mask.name for image in found.images] == ["a.jpg", "a.png"]


@pytest.mark.parametrize("name", [".a.png", "._good.png", ".note.txt", ".metadata.jsonl"])
def test_hidden_files_are_named(tmp_path, name):
    put(tmp_path, "good.png", "a cat")
    picture(tmp_path / "x.png").rename(tmp_path / name)
    assert f"{tmp_path}: 1 hidden files are left out: {name}" in scan(DatasetConfig(folder=str(tmp_path))).about
    (tmp_path / "good.png").unlink()
    with pytest.raises(DataError, match=f"holds no images .*(1 hidden files are left out: {name}|it holds .txt)"):
        scan(DatasetConfig(folder=str(tmp_path)))


@pytest.mark.parametrize("name", ["dataset.json", "notes.tags", "x.prompt", "more.zip", "readme"])
def test_any_other_file_is_named(tmp_path, name):
    put(tmp_path, "good.png", "a cat")
    (tmp_path / name).write_text("{}")
    assert f"{tmp_path}: 1 other files are left out: {name}" in scan(DatasetConfig(folder=str(tmp_path))).about


@pytest.mark.parametrize("name", ["a.tga", "a.PSD", "a.ico", "a.jp2", "a.pef", "a.ppm", "a.kra", "a.EPS", "a.qoi"])
def test_images_of_other_kinds_are_named_as_images(tmp_path, name):
    put(tmp_path, "good.png", "a cat")
    (tmp_path / name).write_bytes(b"x")
    kind = name[1:].lower()
    assert (
        f"{tmp_path}: 1 {kind} left out, this kind of image is not read, convert them: {name}"
        in scan(DatasetConfig(folder=str(tmp_path))).notes
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_named_and_never_opened(tmp_path):
    put(tmp_path, "good.png", "a cat")
    os.mkfifo(tmp_path / "pipe.png")
    found = scan(DatasetConfig(folder=str(tmp_path)))
    assert f"{tmp_path}: {tmp_path / 'pipe.png'} is a pipe or a device" in found.notes


def test_an_empty_folder_of_kohyas_is_named_and_stops_only_if_all_are(tmp_path):
    put(tmp_path / "10_cat", "good.png", "a cat")
    (tmp_path / "5_dog").mkdir()
    options = DatasetConfig(folder=str(tmp_path), layout="kohya")
    found = scan(options)
    assert len(found.images) == 1
    assert [note for note in found.notes if note.startswith(f"{tmp_path / '5_dog'} holds no images")]
    (tmp_path / "10_cat" / "good.png").unlink()
    with pytest.raises(DataError, match=r"10_cat holds no images .*\n.*5_dog holds no images"):
        scan(options)
