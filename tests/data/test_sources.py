"""Folders and captions: nothing is dropped silently; every problem is named at once."""

import pytest
from PIL import Image

from lora_loom.trainer.config import DatasetConfig
from lora_loom.trainer.data.sources import find_images
from lora_loom.trainer.errors import DataError


def put(folder, name, caption=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def captions(folder, **options):
    return [image.caption for image in find_images(DatasetConfig(folder=str(folder), **options))]


def test_sidecars_with_trigger(tmp_path):
    put(tmp_path, "b.png", "a cat\n")
    put(tmp_path, "a.jpg", "\ufeffein Hund äöü")
    assert captions(tmp_path, trigger="sks") == ["sks ein Hund äöü", "sks a cat"]


def test_other_sources(tmp_path):
    put(tmp_path / "10_my_cat", "red_sofa.png")
    folder = tmp_path / "10_my_cat"
    assert captions(folder, captions="filename") == ["red sofa"]
    assert captions(folder, captions="folder") == ["my cat"]
    assert captions(folder, captions="fixed", caption="a thing") == ["a thing"]
    assert captions(folder) == ["red sofa"], "auto falls back to file names when there is no sidecar"


def test_auto_means_sidecars_as_soon_as_there_is_one(tmp_path):
    put(tmp_path, "a.png", "a cat")
    put(tmp_path, "b.png")
    with pytest.raises(DataError, match=r"b\.png has no caption: write b\.txt beside it"):
        captions(tmp_path)
    assert captions(tmp_path, caption="fallback") == ["a cat", "fallback"]


@pytest.mark.parametrize(
    ("kind", "name", "remedy"),
    [
        ("sidecar", "a.png", r"write a\.txt beside it"),
        ("filename", "___.png", "give it a name"),
        ("folder", "7_/a.png", "put it in a folder named"),
    ],
)
def test_missing_caption_names_file_and_remedy(tmp_path, kind, name, remedy):
    path = put(tmp_path, name)
    with pytest.raises(DataError, match=f"{path.name} has no caption: {remedy}"):
        captions(path.parent, captions=kind)


def test_all_problems_at_once(tmp_path):
    for number in range(15):
        put(tmp_path, f"{number:02d}.png")
    put(tmp_path, "x.png", "fine")
    with pytest.raises(DataError) as error:
        captions(tmp_path)
    assert str(error.value).count("has no caption") == 10
    assert "… and 5 more" in str(error.value)


def test_empty_folder_and_its_reasons(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        captions(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no images \(.*png.*\)"):
        captions(tmp_path)
    (tmp_path / "a.tiff").write_bytes(b"x")
    with pytest.raises(DataError, match=r"it holds \.tiff: convert them"):
        captions(tmp_path)


def test_sub_folders(tmp_path):
    put(tmp_path / "deep", "a.png", "deep cat")
    with pytest.raises(DataError, match=r"set dataset\.recursive = true"):
        captions(tmp_path)
    assert captions(tmp_path, recursive=True) == ["deep cat"]


def test_hidden_and_foreign_files_are_no_images(tmp_path):
    put(tmp_path, "a.png", "a cat")
    (tmp_path / ".thumb.png").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x")
    assert captions(tmp_path) == ["a cat"]


def test_caption_in_another_encoding(tmp_path):
    put(tmp_path, "a.png").with_suffix(".txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8"):
        captions(tmp_path)


def test_references(tmp_path):
    put(tmp_path / "images", "a.png", "make it red")
    put(tmp_path / "before", "a.jpg")
    [image] = find_images(DatasetConfig(folder=str(tmp_path / "images"), references=str(tmp_path / "before")))
    assert image.reference == tmp_path / "before" / "a.jpg"
    assert image.mask is None


def test_masks(tmp_path):
    put(tmp_path / "images", "a.png", "a cat")
    masks = tmp_path / "masks"
    masks.mkdir()
    options = {"masks": str(masks)}
    with pytest.raises(DataError, match=r"a\.png has no counterpart for dataset\.masks: put a\.png into"):
        captions(tmp_path / "images", **options)
    put(masks, "a.webp")
    [image] = find_images(DatasetConfig(folder=str(tmp_path / "images"), **options))
    assert image.mask == masks / "a.webp"
    [image] = find_images(DatasetConfig(folder=str(tmp_path / "images"), masks="alpha"))
    assert image.mask == image.path
