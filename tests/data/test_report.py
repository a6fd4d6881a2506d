"""The report: every image is accounted for, every oddity named, the same in words, JSON and on the contact sheet."""

import io
import json
import random
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.contact_sheet import (
    CROP,
    MAX_CELLS,
    Thumbnail,
    contact_sheet,
    contact_sheets,
    shortened,
    thumbnails,
)
from lora_loom.trainer.data.images.duplicates import NEAR, SAME_COLOUR, near_duplicates
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.probe import probe
from lora_loom.trainer.data.report import epochs, epochs_text, make_report, refuse_warnings
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.demo.scenes import random_scene
from lora_loom.trainer.drawing.fonts import font
from lora_loom.trainer.errors import DataError
from tests.conftest import pictures


def build(tmp_path, folder, resolution=64, **options):
    sets = [DatasetConfig(folder=str(folder), **options)]
    return build_dataset(
        sets, DataConfig(resolution=resolution), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None
    )


@pytest.fixture
def odd(tmp_path):
    """Six sound images, a copy, a near copy, a small one and a broken one."""
    folder = tmp_path / "odd"
    shutil.copytree(pictures(), folder)
    rng = random.Random(7)
    scene = random_scene(rng).draw().resize((160, 120))
    scene.save(folder / "original.png")
    scene.resize((200, 150)).save(folder / "again.jpg", quality=80)
    shutil.copy(folder / "0.png", folder / "copy of 0.png")
    random_scene(rng).draw().resize((32, 48)).save(folder / "tiny.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    for name in ("original", "again", "copy of 0", "tiny", "broken"):
        (folder / f"{name}.txt").write_text("words")
    return folder


def test_everything_odd_is_named(tmp_path, odd):
    report = make_report(build(tmp_path, odd))
    assert report.roles == {"train": 10}
    assert report.copies == [["0.png", "copy of 0.png"]]
    assert report.near_duplicates == [["again.jpg", "original.png"]]
    assert list(report.enlarged) == ["tiny.png"]
    assert report.enlarged["tiny.png"] > 1.5
    assert list(report.unreadable) == ["broken.png"]
    assert (report.smallest, report.largest) == ((32, 48), (200, 150))
    assert sum(bucket.images for bucket in report.buckets) == report.per_epoch == 10
    text = report.text()
    for words in (
        "10 train images",
        "sizes: 32 x 48 to 200 x 150",
        "1 images are smaller than their bucket and are upscaled: tiny.png",
        "broken.png is not an image that can be read",
        "1 groups are near-duplicates: again.jpg = original.png",
        "1 groups are the same file under several names: 0.png = copy of 0.png",
    ):
        assert words in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert len(plain["warnings"]) == 4
    assert plain["near_duplicates"] == report.near_duplicates


def test_strict_refuses_every_warning_at_once(tmp_path, odd):
    with pytest.raises(DataError) as error:
        refuse_warnings(make_report(build(tmp_path, odd)))
    assert all(word in str(error.value) for word in ("tiny.png", "broken.png", "again.jpg", "copy of 0.png"))
    refuse_warnings(make_report(build(tmp_path, pictures())))


def test_without_fingerprints_it_says_so(tmp_path):
    dataset = replace(build(tmp_path, pictures()), fingerprints={})
    assert make_report(dataset).near_duplicates is None
    assert "not searched for: pip install imagehash" in make_report(dataset).text()


def test_steps_of_an_epoch_and_the_usual_ones(tmp_path):
    report = make_report(build(tmp_path, pictures(), repeats=10))
    found = epochs(report, batch_size=4, accumulation=2, steps=80)
    assert (found["seen_per_epoch"], found["batches_per_epoch"], found["steps_per_epoch"]) == (60, 16, 8)
    assert found["epochs"] == 10
    assert found["recommended_steps"] == {"a character": [250, 875], "a style": [1000, 1500]}
    assert "250 to 875 steps for a character" in epochs_text(report, 4, 2, 80)
    assert "6 images 10 x per epoch" in report.text()
    assert "#" in report.text()
    assert "#" not in report.text(bars=False), "a bar of a console is noise in a page"


fingerprints = st.lists(
    st.one_of(
        st.just(""),
        st.integers(0, 2**64 - 1).map("{:016x}".format),
        st.sampled_from(["0" * 16, "0" * 15 + "7", "f" + "0" * 15]),
    ),
    max_size=25,
)


@given(
    prints=fingerprints,
    flips=st.lists(st.tuples(st.integers(0, 24), st.sets(st.integers(0, 63), max_size=8)), max_size=6),
    greys=st.lists(st.sampled_from([0, SAME_COLOUR, SAME_COLOUR + 1, 2 * SAME_COLOUR + 1]), min_size=31, max_size=31),
)
def test_near_duplicates_are_those_of_comparing_all_pairs(prints, flips, greys):
    for place, bits in flips:
        if place < len(prints) and prints[place]:
            prints.append(f"{int(prints[place], 16) ^ sum(1 << bit for bit in bits):016x}")
    looks = [(mark, f"80{grey:02x}40") for mark, grey in zip(prints, greys, strict=False)]
    groups = {number: {number} for number, fingerprint in enumerate(prints) if fingerprint}
    for a in list(groups):
        for b in list(groups):
            near = (int(prints[a], 16) ^ int(prints[b], 16)).bit_count() <= NEAR
            near = near and abs(greys[a] - greys[b]) <= SAME_COLOUR
            if near and groups[a] is not groups[b]:
                joined = groups[a] | groups[b]
                for member in joined:
                    groups[member] = joined
    expected = {tuple(sorted(group)) for group in groups.values() if len(group) > 1}
    assert {tuple(sorted(group)) for group in near_duplicates(looks)} == expected


def test_flat_drawings_that_differ_are_not_taken_for_copies(tmp_path):
    """Of a few flat shapes the hash alone takes every eighth for another one."""
    rng, buffer = random.Random(0), io.BytesIO()
    scenes = [random_scene(rng).draw() for _ in range(150)]
    scenes[10].resize((300, 300)).save(buffer, "jpeg", quality=70)
    files = [_png(scene) for scene in scenes] + [buffer.getvalue()]
    looks = [(seen.fingerprint, seen.colours) for seen in (probe(tmp_path, content) for content in files)]
    alone = near_duplicates([(mark, "") for mark, _ in looks])
    assert sum(map(len, alone)) > 15
    assert near_duplicates(looks) == [[10, 150]]


def _png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_near_duplicates_of_a_large_set_are_quick():
    """Far below comparing all pairs; blank pictures, which all hash alike, among them."""
    rng = random.Random(0)
    prints = [f"{rng.getrandbits(64):016x}" for _ in range(10_000)] + ["8000000000000000"] * 2000
    started = time.process_time()
    looks = [(mark, rng.randbytes(192).hex()) for mark in prints[:10_000]] + [
        (mark, "ff" * 192) for mark in prints[10_000:]
    ]
    assert max(map(len, near_duplicates(looks))) == 2000
    assert time.process_time() - started < 5


def pixels(image, colour):
    return int((np.asarray(image) == colour).all(-1).sum())


def test_the_crop_is_drawn(tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    Image.new("RGB", (200, 100), "navy").save(folder / "a.png")
    sets = [DatasetConfig(folder=str(folder), captions="filename")]
    data = DataConfig(resolution=64, buckets="off")
    dataset = build_dataset(sets, data, 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
    [thumbnail] = thumbnails(dataset, make_report(dataset))
    assert thumbnail.note == "200 x 100 → 64 x 64"
    cropped = contact_sheet([thumbnail], "t")
    whole = contact_sheet([Thumbnail(path=thumbnail.path, caption="a")], "t")
    navy = (0, 0, 128)
    assert pixels(whole, CROP) == 0
    assert pixels(cropped, CROP) == pytest.approx(4 * 96 * 2, abs=60), "a frame of two pixels around half the image"
    assert pixels(cropped, navy) == pytest.approx(pixels(whole, navy) / 2, rel=0.1)


def test_odd_images_come_first_and_pages_hold_all(tmp_path, odd):
    dataset = build(tmp_path, odd)
    shown = thumbnails(dataset, make_report(dataset))
    assert len(shown) == 10
    warned = [one.path.name for one in shown if one.warning]
    assert sorted(warned) == ["0.png", "again.jpg", "copy of 0.png", "original.png", "tiny.png"]
    assert [one.path.name for one in shown[:5]] == warned
    pages = contact_sheets(shown * 25, "many")
    assert len(pages) == -(-250 // MAX_CELLS)


NAMES = [
    "a" * 200 + ".png",
    "日本語の名前.png",
    "two\nlines\ttab.png",
    "🙂.png",
    "плохое имя.png",
    "-rf --help.png",
    "%s{0}<b>.png",
    ".",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_odd_names_fit(name):
    short = shortened(name, 192)
    assert font(12).getlength(short) <= 192
    assert "\n" not in short
    if "…" in short:
        assert name.startswith(short.split("…")[0])
        assert name.endswith(short.split("…")[1])


def test_an_unreadable_image_has_a_cell(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no")
    assert contact_sheet([Thumbnail(path=tmp_path / "x.png", caption="")], "t").width > 192


def test_a_folder_in_two_roles_counts_in_both(tmp_path):
    folder = pictures()
    sets = [DatasetConfig(folder=str(folder)), DatasetConfig(folder=str(folder), role="regularisation")]
    dataset = build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)
    count = len(list(folder.glob("*.png")))
    assert make_report(dataset).roles == {"train": count, "regularisation": count}
    assert make_report(dataset).text().splitlines()[0].startswith(f"{count} train, {count} regularisation images")


def test_validation_images_are_called_so(tmp_path):
    report = make_report(build(tmp_path, pictures()))
    counted = replace(report, roles={"train": 9, "held_out": 1})
    assert counted.text().startswith("9 train, 1 validation images")
