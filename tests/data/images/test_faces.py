"""Faces: a drawn one is found where it is, the crop follows it, and without the detector the remedy is named."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.images import faces
from lora_loom.trainer.data.images.faces import NONE, face_position, largest_face
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.errors import ConfigError


def face(side):
    """A drawn face; its middle is the image's."""
    image = Image.new("RGB", (200, 200), (120, 140, 150))
    draw = ImageDraw.Draw(image)

    def oval(x, y, across, down, colour):
        draw.ellipse((x - across, y - down, x + across, y + down), fill=colour)

    oval(100, 85, 62, 75, (60, 40, 30))
    oval(100, 110, 52, 68, (224, 172, 140))
    for x in (78, 122):
        oval(x, 95, 16, 9, (150, 100, 80))
        oval(x, 97, 10, 5, (245, 245, 245))
        oval(x, 97, 5, 5, (30, 20, 20))
        oval(x, 82, 17, 4, (60, 40, 30))
    draw.polygon([(100, 95), (92, 128), (108, 128)], fill=(200, 145, 115))
    oval(100, 150, 20, 6, (150, 60, 60))
    oval(100, 148, 18, 2, (90, 30, 30))
    return image.filter(ImageFilter.GaussianBlur(2)).resize((side, side), Image.Resampling.BICUBIC)


def scene(path, *places, size=(640, 400)):
    """Faces (side, left, top) before a plain ground."""
    canvas = Image.new("RGB", size, (90, 110, 100))
    for side, left, top in places:
        canvas.paste(face(side), (left, top))
    canvas.save(path)
    return path


def test_the_largest_face_is_found(tmp_path):
    pytest.importorskip("cv2")
    path = scene(tmp_path / "a.png", (100, 20, 250), (220, 380, 40))
    across, down = (float(part) for part in largest_face(path, path.read_bytes()).split())
    assert (across * 640, down * 400) == (pytest.approx(490, abs=12), pytest.approx(155, abs=20))
    blank = scene(tmp_path / "b.png")
    assert largest_face(blank, blank.read_bytes()) == NONE


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.integers(40, 90), st.integers(40, 90)),
    st.tuples(st.integers(16, 40), st.integers(16, 40)),
)
def test_the_crop_has_the_face_as_near_its_middle_as_the_image_allows(middle, resized, target):
    at = face_position(f"{middle[0]:.4f} {middle[1]:.4f}", resized, target)
    for share, face_at, whole, part in zip(at, middle, resized, target, strict=True):
        left = share * (whole - part)
        best = min(max(face_at * whole - part / 2, 0), whole - part)
        assert left == pytest.approx(best, abs=0.01)
    assert face_position(NONE, resized, target) is None


def build(tmp_path, **options):
    sets = [DatasetConfig(folder=str(tmp_path / "images"), caption="x", captions="fixed", buckets="off", **options)]
    return build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)


def test_crops_follow_faces_and_images_without_one_are_named(tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "images").mkdir()
    scene(tmp_path / "images" / "a.png", (220, 400, 40))
    scene(tmp_path / "images" / "b.png", size=(400, 640))
    middle = build(tmp_path).examples[0].geometry
    data = build(tmp_path, crop="face")
    first, second = (example.geometry for example in data.examples)
    assert middle.crop_left == (middle.resized[0] - 64) // 2 < first.crop_left
    assert second.crop_top == 0, "without a face the upper middle stays"
    assert "no face was found in 1 images, whose upper middle stays: b.png" in "\n".join(data.notes)
    assert build(tmp_path, crop="face").digest == data.digest


def test_without_the_detector_the_remedy_is_named_before_an_image_is_read(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"not read")
    faces._cascades.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"crop = 'face' needs OpenCV 4.* pip install 'opencv-python-headless<5'"):
        build(tmp_path, crop="face")
