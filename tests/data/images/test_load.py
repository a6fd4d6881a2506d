"""Opening images: whatever people bring ends as upright RGB of the bucket's size, or as a clear error."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from lora_loom.trainer.data.images import load as images
from lora_loom.trainer.data.images.load import check_readable, load_mask, load_pixels, parse_colour, upright_size
from lora_loom.trainer.errors import ConfigError, DataError
from lora_loom.trainer.types import Geometry


def whole(width, height, **changes):
    values = {
        "original": (width, height),
        "resized": (width, height),
        "crop_left": 0,
        "crop_top": 0,
        "target": (width, height),
    }
    return Geometry(**{**values, **changes})


def gradient(width, height):
    """Red rises to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "avif", "gif"])
def test_formats(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow knows no AVIF")
    path = tmp_path / f"image.{suffix}"
    gradient(48, 32).save(path, quality=95)
    assert path.suffix in images.SUFFIXES
    pixels = load_pixels(path, whole(48, 32))
    assert pixels.shape == (3, 32, 48)
    assert pixels.dtype == torch.float32
    expected = torch.from_numpy(np.asarray(gradient(48, 32), np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert (pixels - expected).abs().mean() < 0.05


def test_pixels_are_exact_for_png(tmp_path):
    path = tmp_path / "image.png"
    gradient(16, 16).save(path)
    pixels = load_pixels(path, whole(16, 16))
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy().tolist() == np.asarray(
        gradient(16, 16)
    ).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    """The picture comes out as a viewer shows it, and its size is known without decoding."""
    shown = gradient(48, 32)
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = shown
    for operation in undo:
        stored = stored.transpose(Image.Transpose(operation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    stored.save(path, exif=exif)
    assert upright_size(path) == (48, 32)
    assert torch.equal(load_pixels(path, whole(48, 32)), load_pixels_plain(shown, tmp_path))


def load_pixels_plain(image, folder):
    image.save(folder / "plain.png")
    return load_pixels(folder / "plain.png", whole(*image.size))


def test_transparency_lies_on_the_background(tmp_path):
    image = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.save(tmp_path / "a.png")
    pixels = load_pixels(tmp_path / "a.png", whole(8, 8), background="#00ff00")
    assert pixels[:, 0, 0].tolist() == [-1, 1, -1]
    assert pixels[:, 1, 1].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16", "1"])
def test_other_colour_modes(tmp_path, mode):
    grey = Image.fromarray((np.full((8, 8), 128)).astype(np.uint8))
    image = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = load_pixels(path, whole(8, 8))
    assert pixels.shape == (3, 8, 8)
    if mode not in ("1", "CMYK"):
        assert pixels.mean().item() == pytest.approx(128 / 127.5 - 1, abs=0.02)


def test_crop_and_mirror(tmp_path):
    gradient(64, 32).save(tmp_path / "a.png")
    plain = load_pixels(tmp_path / "a.png", whole(64, 32))
    cut = load_pixels(tmp_path / "a.png", whole(64, 32, crop_left=10, crop_top=4, target=(32, 16)))
    assert torch.equal(cut, plain[:, 4:20, 10:42])
    mirrored = load_pixels(tmp_path / "a.png", whole(64, 32, crop_left=10, crop_top=4, target=(32, 16), flip=True))
    assert torch.equal(mirrored, cut.flip(-1))


def test_mask_follows_the_crop(tmp_path):
    gradient(64, 32).save(tmp_path / "a.png")
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 32, 32))
    mask.save(tmp_path / "m.png")
    geometry = whole(64, 32, crop_left=16, target=(32, 32))
    values = load_mask(tmp_path / "m.png", geometry, from_alpha=False)
    assert values.shape == (1, 32, 32)
    assert values[0, 0].tolist() == [1.0] * 16 + [0.0] * 16


def test_mask_from_alpha_and_of_another_size(tmp_path):
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    image.paste((1, 2, 3, 255), (0, 0, 8, 16))
    image.save(tmp_path / "a.png")
    assert load_mask(tmp_path / "a.png", whole(16, 16), from_alpha=True)[0, 3].tolist() == [1.0] * 8 + [0.0] * 8
    Image.new("L", (4, 4), 255).save(tmp_path / "small.png")
    assert load_mask(tmp_path / "small.png", whole(16, 16), from_alpha=False).unique().tolist() == [1.0]


def test_truncated_image(tmp_path):
    path = tmp_path / "cut.png"
    gradient(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png is damaged .*replace or remove"):
        check_readable(path)


def test_not_an_image(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"text\.png is not an image"):
        check_readable(path)


def test_huge_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    Image.new("L", (300, 200)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 50_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="300 x 200 pixels are more than 50,000, or than .* on a side; make it smaller"):
        upright_size(path)


@pytest.mark.parametrize(("width", "height"), [(13_200, 13_200), (60_000, 60_000)])
def test_a_decompression_bomb_by_its_header(tmp_path, width, height):
    """A few bytes that claim to be a huge picture, just above our limit and far above Pillow's own."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(start + struct.pack(">I", 10) + b"IDAT")
    with pytest.raises(DataError, match=r"bomb\.png: .*more than 170,000,000.*make it smaller"):
        check_readable(path)


def test_unknown_colour():
    assert parse_colour("white") == (255, 255, 255)
    with pytest.raises(ConfigError, match="use a colour name"):
        parse_colour("whitee")


def test_a_format_that_this_pillow_lacks_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0 ftypavif")
    monkeypatch.setattr(images.features, "check", lambda name: False)
    with pytest.raises(DataError, match=r"a\.avif .*built without AVIF; install a newer one .*or convert it"):
        check_readable(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(path, save_all=True, append_images=[second], lossless=True)
    check_readable(path)
    assert load_pixels(path, whole(8, 8))[:, 3, 3].tolist() == [1, -1, -1]


def test_a_gif_with_transparency(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "a.gif", transparency=1)
    pixels = load_pixels(tmp_path / "a.gif", whole(8, 8), background="#00ff00")
    assert pixels[:, 0, 0].tolist() == [-1, 1, -1]
    assert pixels[:, 4, 4].tolist() == [1, -1, -1]


def test_dark_16_bit_greys_stay_dark(tmp_path):
    """All values below 256 of 65535: nearly black, whatever an 8-bit reader would make of them."""
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert load_pixels(tmp_path / "a.png", whole(8, 8)).max().item() < -0.99


def test_16_bit_grey_with_a_transparent_value(tmp_path):
    array = np.full((8, 8), 65535, np.uint16)
    array[0, 0] = 7
    Image.fromarray(array).save(tmp_path / "a.png", transparency=7)
    pixels = load_pixels(tmp_path / "a.png", whole(8, 8), background="#ff0000")
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]
    assert pixels[:, 4, 4].tolist() == [1, 1, 1]


def test_16_bit_colours(tmp_path):
    """Pillow writes none, so the file is made by hand: one red, one green pixel of 16 bits a channel."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 0x8080, 0)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    pixels = load_pixels(path, whole(2, 1))
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]
    assert pixels[1, 0, 1].item() == pytest.approx(128 / 127.5 - 1, abs=1e-5)


def swapped_profile():
    """A profile whose red is sRGB's green and the other way round: its colours cannot be mistaken for sRGB."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(content[128:132], "big")
    places = {bytes(content[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    text = int.from_bytes(content[places[b"desc"] + 4 : places[b"desc"] + 8], "big")
    end = text + int.from_bytes(content[places[b"desc"] + 8 : places[b"desc"] + 12], "big")
    content[text:end] = content[text:end].replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return bytes(content)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_turned_into_srgb(tmp_path, mode):
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    red, green, blue = load_pixels(tmp_path / "a.png", whole(8, 8))[:, 3, 3].tolist()
    assert (red, blue) == pytest.approx((-1, -1), abs=0.05)
    assert green == pytest.approx(1, abs=0.05)


def test_transparency_survives_a_colour_profile(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert load_pixels(tmp_path / "a.png", whole(8, 8), background="#0000ff")[:, 0, 0].tolist() == [-1, -1, 1]
    assert load_mask(tmp_path / "a.png", whole(8, 8), from_alpha=True).max() == 0


@pytest.mark.parametrize(
    "profile", [b"no profile at all", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
def test_an_srgb_or_broken_profile_changes_nothing(tmp_path, profile):
    gradient(16, 16).save(tmp_path / "a.png", icc_profile=profile)
    assert torch.equal(load_pixels(tmp_path / "a.png", whole(16, 16)), load_pixels_plain(gradient(16, 16), tmp_path))


def test_a_cmyk_jpeg_shows_its_colour(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert load_pixels(tmp_path / "a.jpg", whole(16, 16))[:, 8, 8].tolist() == pytest.approx([1, -1, -1], abs=0.1)


@pytest.mark.parametrize(
    ("size", "reason"), [((1, 170_000_000), "than 65,535 on a side"), ((12_000, 12_000), "pixels in .* bytes")]
)
def test_a_small_file_cannot_cost_much_memory(tmp_path, size, reason):
    """The header alone says how large the image is; no pixel is decoded."""
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=reason), images.opened(path, bytes(content)):
        pytest.fail("it was opened")
