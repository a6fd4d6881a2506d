"""Damaged files: whatever the bytes are, reading them ends soon, in pixels or in an error that names the file."""

import json
import random
import signal
from contextlib import contextmanager

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image, features

from lora_loom.trainer.data.images.load import load_pixels, upright_size
from lora_loom.trainer.data.images.probe import probe
from lora_loom.trainer.data.sets.dataset_file import read_dataset_file
from lora_loom.trainer.data.sets.tables import read_table
from lora_loom.trainer.demo.scenes import random_scene
from lora_loom.trainer.errors import LoomError
from lora_loom.trainer.types import Geometry

SECONDS = 2


@contextmanager
def soon(what):
    """Fails if the body takes longer than two seconds, even if it would never end."""

    def late(number, frame):
        pytest.fail(f"{what}: not read within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut off, doubled, or overwritten by numbers that lengths and sizes could be."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place, kind = rng.randrange(len(made)), rng.randrange(5)
        if rng.random() < 0.5:
            place = min(place, rng.randrange(200))  # headers are where it hurts
        if kind == 0:
            made[place] = rng.randrange(256)
        elif kind == 1:
            made[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\0\0\0"])
        elif kind == 2:
            del made[place : place + rng.randint(1, 50)]
        elif kind == 3:
            made[place:place] = made[place : place + rng.randint(1, 50)]
        else:
            made[place:] = made[place:][: rng.randint(0, len(made))]
        if not made:
            return b""
    return bytes(made)


def image_files(folder):
    """One small picture in every format and in the modes that are read in another way."""
    picture = random_scene(random.Random(0)).draw().resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "a.png": (picture, {"exif": exif}),
        "p.png": (picture.quantize(16), {}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "deep.png": (Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257), {}),
        "a.jpg": (picture, {"exif": exif}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "a.webp": (picture, {}),
        "a.bmp": (picture, {}),
        "film.gif": (picture, {"save_all": True, "append_images": [picture.rotate(90)]}),
    }
    if features.check("avif"):
        kinds["a.avif"] = (picture, {})
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return [folder / name for name in kinds]


def check_images(tmp_path, count, seed):
    rng, originals, reasons = random.Random(seed), image_files(tmp_path), []
    for number in range(count):
        original = originals[number % len(originals)]
        path = tmp_path / f"mutated-{number}{original.suffix}"
        path.write_bytes(mutated(original.read_bytes(), rng))
        with soon(path.name):
            try:
                seen = probe(path, path.read_bytes())
                size = upright_size(path)
                assert seen.size == size
                place = Geometry(original=size, resized=(32, 32), crop_left=0, crop_top=0, target=(32, 32))
                assert load_pixels(path, place).shape == (3, 32, 32)
            except LoomError as error:
                reasons.append((path.name, str(error)))
        path.unlink()
    assert all(name in reason for name, reason in reasons)
    assert count / 10 < len(reasons) < count, "the mutations matter, and not all are fatal"


def test_damaged_images(tmp_path):
    check_images(tmp_path, 100, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_damaged_images_often(tmp_path, seed):
    check_images(tmp_path, 1000, seed)


def descriptions(folder):
    """Files that say what a data set is, of every kind."""
    from tests.data.sets.test_dataset_file import KOHYA, TUNER

    contents = {
        "kohya.toml": KOHYA,
        "own.toml": '[[dataset]]\nfolder = "cat"\nresolutions = [512, 768]\naspects = [1.0]\ncrop = "random"\n',
        "multidatabackend.json": json.dumps(TUNER),
        "metadata.jsonl": '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "text": ["x", "y"]}\n',
        "metadata.csv": 'file_name,text\na.png,"a cat, sofa"\nb.png,x\n',
        "metadata.json": json.dumps({"a": {"caption": "a cat", "tags": "x, y"}}),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    names = [*contents, "metadata.parquet"]
    pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a.png"], "text": ["a cat"]}), folder / names[-1])
    return [folder / name for name in names]


def check_descriptions(tmp_path, count, seed):
    rng, originals, reasons = random.Random(seed), descriptions(tmp_path), []
    for number in range(count):
        original = originals[number % len(originals)]
        path = tmp_path / f"mutated-{number}{original.suffix}"
        path.write_bytes(mutated(original.read_bytes(), rng))
        with soon(path.name):
            try:
                if original.stem == "metadata":
                    read_table(path)
                else:
                    read_dataset_file(path)
            except LoomError as error:
                reasons.append((path.name, str(error)))
        path.unlink()
    assert all(name in reason for name, reason in reasons)
    assert count / 10 < len(reasons) < count


def test_damaged_descriptions(tmp_path):
    check_descriptions(tmp_path, 120, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_damaged_descriptions_often(tmp_path, seed):
    check_descriptions(tmp_path, 1000, seed)
