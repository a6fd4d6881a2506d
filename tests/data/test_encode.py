"""Filling the cache: only what is missing, exactly what the encoders give."""

import shutil

import pytest
import torch
from PIL import Image

from lora_loom.trainer.config import DataConfig, DatasetConfig
from lora_loom.trainer.data.cache import Cache, text_key
from lora_loom.trainer.data.dataset import build_dataset
from lora_loom.trainer.data.encode import EncoderIdentity, fill, find_work, views
from lora_loom.trainer.data.images import load_pixels
from lora_loom.trainer.data.index import FileIndex
from lora_loom.trainer.families import get
from tests.conftest import pictures

IDENTITY = EncoderIdentity(vae="v", text="t")


@pytest.fixture(scope="module")
def encoders():
    return get("sd").tiny().encoders


def dataset(tmp_path, folder, **options):
    sets = [DatasetConfig(folder=str(folder), **options)]
    return build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(tmp_path / "files.json"), lambda *p: None)


def run(tmp_path, data, encoders, batch=1):
    cache = Cache(tmp_path / "cache")
    return cache, fill(cache, find_work(cache, data, IDENTITY), encoders, batch, lambda *p: None)


def test_contents_are_the_encoders_own(tmp_path, encoders):
    data = dataset(tmp_path, pictures(), flip=True)
    cache, report = run(tmp_path, data, encoders)
    assert (report.reused, report.encoded) == (0, 12 + len(data.captions))
    view = views(data.examples[1])[1]
    assert view.geometry.flip
    pixels = load_pixels(view.example.path, view.geometry)
    assert torch.equal(cache.get(view.key(IDENTITY.vae))["latents"], encoders.image.encode(pixels[None])[0])
    caption = data.captions[-1]
    assert torch.equal(cache.get(text_key(caption, "t"))["text"], encoders.text.encode([caption])[0]["text"])


def test_batched_encoding_gives_the_same(tmp_path, encoders):
    data = dataset(tmp_path, pictures())
    one, _ = run(tmp_path / "a", data, encoders, batch=1)
    four, _ = run(tmp_path / "b", data, encoders, batch=4)
    for example in data.examples:
        key = views(example)[0].key(IDENTITY.vae)
        assert torch.allclose(one.get(key)["latents"], four.get(key)["latents"], atol=1e-5)


def test_an_unchanged_set_encodes_nothing_and_one_edit_encodes_one(tmp_path, encoders):
    folder = tmp_path / "copy"
    shutil.copytree(pictures(), folder)
    run(tmp_path, dataset(tmp_path, folder), encoders)
    _, report = run(tmp_path, dataset(tmp_path, folder), encoders)
    assert report.encoded == 0
    assert report.reused == 6 + 7
    Image.new("RGB", (64, 64), "teal").save(folder / "2.png")
    assert run(tmp_path, dataset(tmp_path, folder), encoders)[1].encoded == 1
    (folder / "3.txt").write_text("something new")
    assert run(tmp_path, dataset(tmp_path, folder), encoders)[1].encoded == 1


def test_masks_are_cached_at_the_latents_size(tmp_path, encoders):
    folder = tmp_path / "masked"
    folder.mkdir()
    image = Image.new("RGBA", (64, 64), (200, 10, 10, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(folder / "a.png")
    data = dataset(tmp_path, folder, masks="alpha")
    cache, _ = run(tmp_path, data, encoders)
    mask = cache.get(views(data.examples[0])[0].key(IDENTITY.vae))["mask"]
    assert mask.shape == (1, 8, 8)
    assert mask[0, 0].tolist() == [0] * 4 + [1] * 4


def test_stopping_half_way_keeps_finished_shards(tmp_path, encoders):
    data = dataset(tmp_path, pictures())
    cache = Cache(tmp_path / "cache")
    work = find_work(cache, data, IDENTITY)

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what == "captions":
            raise Stop

    with pytest.raises(Stop):
        fill(cache, work, encoders, 1, stop)
    left = find_work(Cache(tmp_path / "cache"), data, IDENTITY)
    assert not left.views
    assert left.prompts
