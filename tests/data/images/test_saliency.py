"""The crop by saliency: what stands out stays in, a mirrored image is cropped mirrored, and without anything it is the middle."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.ndimage import fourier_gaussian

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.probe import THUMBNAIL, thumbnail
from lora_loom.trainer.data.images.saliency import BINS, SIDE, crop_position, focus, spectral_residual
from lora_loom.trainer.data.sets.dataset import build_dataset


def landscape(centre, size=(384, 128), radius=20, seed=0):
    """Soft ground with grain, and one disc."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(90, 130, (4, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    image = Image.fromarray((np.asarray(ground) + rng.integers(0, 6, (*size[::-1], 1))).astype(np.uint8))
    x, y = centre
    ImageDraw.Draw(image).ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill=(220, 40, 30), outline="white", width=3
    )
    return image


def found(image):
    return focus(thumbnail(image.copy()))


@given(x=st.integers(24, 360), y=st.integers(24, 104), seed=st.integers(0, 20))
def test_what_stands_out_stays_in(x, y, seed):
    left, _ = crop_position(found(landscape((x, y), seed=seed)), (384, 128), (128, 128))
    assert left * 256 <= x <= left * 256 + 128


@given(x=st.integers(24, 360), seed=st.integers(0, 20))
def test_the_mirror_image_is_cropped_mirrored(x, seed):
    image = landscape((x, 64), seed=seed)
    one, other = (
        crop_position(found(i), (384, 128), (128, 128))[0]
        for i in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
    assert one == pytest.approx(1 - other, abs=0.06)


@given(
    sums=st.binary(min_size=2 * BINS, max_size=2 * BINS),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    spare=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_a_crop_is_within_the_image_and_the_best_there_is(sums, target, spare):
    resized = (target[0] + spare[0], target[1] + spare[1])
    shares = crop_position(sums.hex(), resized, target)
    assert all(0 <= share <= 1 for share in shares)

    def held(values, whole, part, start):
        """Share of a piecewise constant density in a window, by summing its overlaps with the fields."""
        edge = whole / BINS
        return sum(
            value * max(0.0, min(start + part, (i + 1) * edge) - max(start, i * edge)) / edge
            for i, value in enumerate(values)
        )

    for values, whole, part, share in zip((sums[:BINS], sums[BINS:]), resized, target, shares, strict=True):
        best = max(held(values, whole, part, start) for start in range(whole - part + 1))
        assert held(values, whole, part, share * (whole - part)) == pytest.approx(best, rel=1e-6, abs=1e-6)


def test_a_blank_image_is_cropped_in_the_middle():
    assert not spectral_residual(np.full((THUMBNAIL, THUMBNAIL), 7.0)).any()
    assert crop_position(found(Image.new("RGB", (300, 100), "teal")), (300, 100), (100, 100)) == (0.5, 0.5)


def test_a_data_set_is_cropped_by_it(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, x in {"left": 40, "right": 340}.items():
        landscape((x, 64)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    sets = [DatasetConfig(folder=str(folder), crop="saliency")]
    data = DataConfig(resolution=128, buckets="off")
    build_dataset([replace(sets[0], crop="center")], data, 32, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
    for _ in range(2):  # looked at again, since nobody had asked; then from what is known
        dataset = build_dataset(sets, data, 32, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
        left, right = (example.geometry for example in sorted(dataset.examples, key=lambda e: e.path.name))
        assert left.crop_left <= 40 - 20
        assert right.crop_left >= 340 + 20 - 128
        assert (left.resized, left.target) == ((384, 128), (128, 128))


def test_it_is_the_papers_formula():
    """Written out with whole spectra: the log amplitude less its mean over 3 x 3, at the old phase, squared and smoothed."""
    small = thumbnail(landscape((100, 64))).resize((SIDE, SIDE))
    grey = np.asarray(small.convert("L"), dtype=np.float64)
    spectrum = np.fft.fft2(grey - grey.mean())
    log = np.log(np.abs(spectrum) + 1e-9 * np.abs(spectrum).max())
    mean = sum(np.roll(log, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    squared = np.abs(np.fft.ifft2(np.exp(log - mean + 1j * np.angle(spectrum)))) ** 2
    expected = np.fft.ifft2(fourier_gaussian(np.fft.fft2(squared), 2.5)).real
    assert np.allclose(spectral_residual(grey), expected, atol=1e-5 * expected.max())
