"""Odd image files: what a viewer shows is trained, and what is no image says what it is instead."""

import numpy as np
import pytest
import torch
from PIL import Image, features

from lora_loom.trainer.data.images import load as images
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.load import as_shown, check_readable, load_pixels, upright_size
from lora_loom.trainer.data.images.probe import probe
from lora_loom.trainer.errors import DataError

from .test_load import gradient, whole


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_turned_tiff_has_the_size_that_its_pixels_have(tmp_path, orientation, compression):
    """Pillow turns a TIFF while it decodes it, and must not be turned once more."""
    path = tmp_path / "a.tif"
    gradient(48, 32).save(path, tiffinfo={274: orientation}, compression=compression)
    size = (32, 48) if orientation > 4 else (48, 32)
    assert upright_size(path) == size
    assert probe(path, path.read_bytes()).size == size
    survey = FileIndex(tmp_path / "index.json").survey([path], lambda *_: None)
    assert survey.facts[path].size == size
    gradient(48, 32).save(tmp_path / "a.png", exif=exif(orientation))
    assert torch.equal(load_pixels(path, whole(*size)), load_pixels(tmp_path / "a.png", whole(*size)))


def exif(orientation):
    made = Image.Exif()
    made[0x0112] = orientation
    return made


@pytest.mark.parametrize(
    ("numbers", "scale"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), 1),
        (np.linspace(0, 255, 64, dtype=np.float32), 255),
        (np.linspace(0, 65535, 64, dtype=np.float32), 65535),
        (np.linspace(0, 65535, 64).astype(np.int32), 65535),
        (np.linspace(0, 255, 64).astype(np.int32), 255),
    ],
)
def test_greys_of_32_bits_keep_their_range(tmp_path, numbers, scale):
    Image.fromarray(numbers.reshape(8, 8)).save(tmp_path / "a.tif")
    expected = (numbers.astype(np.float64) * 255 / scale).round().reshape(8, 8)
    assert (load_pixels(tmp_path / "a.tif", whole(8, 8))[0].numpy() + 1) * 127.5 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 1e9])
def test_numbers_that_are_no_greys_are_refused(tmp_path, number):
    array = np.full((8, 8), 0.5, np.float32)
    array[2, 3] = number
    Image.fromarray(array).save(tmp_path / "a.tif")
    survey = FileIndex(tmp_path / "index.json").survey([tmp_path / "a.tif"], lambda *_: None)
    assert "where greys go from 0 to 1, 255 or 65535): replace or remove" in survey.problems[tmp_path / "a.tif"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty; get it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><title>404</title>", "a web page or a drawing"),
        (b"\xef\xbb\xbf \n<svg xmlns=''/>", "a web page or a drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIC; pip install pillow-heif"),
        (b"\xff\x0a\0\0\0", "it is JPEG XL; pip install pillow-jxl-plugin"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "it is a video; remove it"),
        (b"hello", "remove or convert it"),
    ],
)
def test_what_is_no_image_says_what_it_is(tmp_path, content, said):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (None, content):
        with (
            pytest.raises(DataError, match=r"a\.jpg is not an image that can be read: ") as error,
            images.opened(path, read),
        ):
            pytest.fail("it was opened")
        assert said in str(error.value)


def test_no_other_program_is_started_for_an_image(tmp_path, monkeypatch):
    """An EPS would be drawn by Ghostscript, which runs what the file says."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    gradient(8, 8).save(tmp_path / "a.jpg", "EPS")
    with pytest.raises(DataError, match="is not an image that can be read"):
        check_readable(tmp_path / "a.jpg")


@pytest.mark.parametrize(("suffix", "kind"), [("apng", "PNG"), ("mpo", "MPO"), ("avifs", "AVIF"), ("jfif", "JPEG")])
def test_other_suffixes_of_the_same_kinds(tmp_path, suffix, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    first.save(path, kind, **({} if kind == "JPEG" else {"save_all": True, "append_images": [second]}))
    assert path.suffix in images.image_suffixes()
    assert load_pixels(path, whole(16, 16))[:, 8, 8].tolist() == pytest.approx([1, -1, -1], abs=0.05)


def test_what_is_compared_with_a_training_image_is_what_a_viewer_shows(tmp_path):
    """Upright, 16 bits scaled, on white where it is transparent: not what Pillow makes of it by itself."""
    gradient(48, 32).save(tmp_path / "turned.jpg", exif=exif(6), quality=95)
    assert as_shown(tmp_path / "turned.jpg").size == (32, 48)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert as_shown(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((4, 4), 0x4000, np.uint16)).save(tmp_path / "grey.png")
    assert as_shown(tmp_path / "grey.png").getpixel((0, 0)) == (64, 64, 64)
