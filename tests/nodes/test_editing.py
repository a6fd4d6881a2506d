"""The folder of images in ComfyUI's page: what is in it, its captions, and that nothing else is read or written."""

import io

import pytest
from PIL import Image

from lora_loom.trainer.errors import ConfigError, DataError


@pytest.fixture
def cats(host):
    folder = host.base / "input" / "loom" / "cats"
    folder.mkdir(parents=True)
    for name, size, colour in (("a", (64, 32), "red"), ("b", (64, 64), "blue"), ("c", (64, 64), "blue")):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a cat, sofa")
    return folder


@pytest.fixture
def house(host):
    return host("encoding.editing")


def test_a_folder_says_what_is_in_it_and_how_it_is_cropped(cats, house):
    found = house.look("loom/cats", 32, 16)
    by_name = {image["name"]: image for image in found["images"]}
    assert list(by_name) == ["a.png", "b.png", "c.png"]
    assert by_name["a.png"]["caption"] == "a cat, sofa"
    assert (by_name["a.png"]["width"], by_name["a.png"]["height"]) == (64, 32)
    left, top, width, height = by_name["a.png"]["crop"]
    assert 0 <= left <= left + width <= 1.0001
    assert 0 <= top <= top + height <= 1.0001
    assert "the same file twice" in by_name["b.png"]["warnings"]
    assert sum(bucket["images"] for bucket in found["buckets"]) == 3
    assert found["can_edit"] is True


def test_a_caption_is_written_beside_its_image(cats, house):
    house.write_caption("loom/cats", "b.png", "  a dög, “sofa” \n")
    assert (cats / "b.txt").read_text(encoding="utf-8") == "a dög, “sofa”"
    assert house.look("loom/cats", 32, 16)["images"][1]["caption"] == "a dög, “sofa”"


@pytest.mark.parametrize("name", ["../../x.png", "a.txt", "nothing.png", "/etc/passwd", "", "a.png\0"])
def test_only_an_image_of_the_folder_has_a_caption_and_a_thumbnail(cats, house, name):
    with pytest.raises(ConfigError, match="is not an image in"):
        house.write_caption("loom/cats", name, "x")
    with pytest.raises(ConfigError, match="is not an image in"):
        house.thumbnail("loom/cats", name)


def test_a_link_does_not_lead_out(cats, house, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (cats / "link.png").symlink_to(secret)
    with pytest.raises(ConfigError):
        house.thumbnail("loom/cats", "link.png")


def test_captions_are_written_below_the_roots_alone(host, house, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    assert house.look(str(folder), 32, 16)["can_edit"] is False
    with pytest.raises(ConfigError, match="is not below a folder of datasets: add it"):
        house.write_caption(str(folder), "a.png", "x")
    assert not (folder / "a.txt").exists()


def test_an_empty_folder_is_told(host, house):
    (host.base / "input" / "empty").mkdir()
    with pytest.raises(DataError):
        house.look("empty", 32, 16)


def test_folders_with_images_are_listed_as_the_node_names_them(host, cats, house):
    other = host.base / "datasets" / "dogs"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "a.png")
    (host.base / "input" / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(host.base / "input" / ".hidden" / "a.png")
    assert house.folders() == ["loom/cats", str(other)]


def test_a_thumbnail_is_small_and_upright(cats, house):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (800, 400), "red").save(cats / "turned.jpg", exif=exif)
    with Image.open(io.BytesIO(house.thumbnail("loom/cats", "turned.jpg"))) as image:
        assert image.size == (128, 256)
