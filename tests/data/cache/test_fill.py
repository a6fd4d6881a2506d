"""Filling the cache: only what is missing, exactly what the encoders give."""

import shutil

import pytest
import torch
from PIL import Image

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import DataConfig, DatasetConfig, ModelConfig
from lora_loom.trainer.data.cache import fill as fill_module
from lora_loom.trainer.data.cache.fill import fill
from lora_loom.trainer.data.cache.keys import find_work, views
from lora_loom.trainer.data.cache.store import Cache, text_key
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.images.load import load_pixels
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.errors import DataError, RunError
from lora_loom.trainer.families import get
from lora_loom.trainer.families.common.family import Encoders
from lora_loom.trainer.types import EncoderIdentity
from tests.conftest import pictures, tiny_folder

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


class Stop(Exception):
    pass


@pytest.mark.parametrize(("what", "left"), [("images", (4, 7)), ("captions", (0, 5))])
def test_stopping_half_way_keeps_all_that_was_encoded(tmp_path, encoders, monkeypatch, what, left):
    monkeypatch.setattr(fill_module, "TEXT_BATCH", 2)
    data = dataset(tmp_path, pictures())
    cache = Cache(tmp_path / "cache")

    def stop(stage, done, total):
        if stage == what and done == 2:
            raise Stop

    with pytest.raises(Stop):
        fill(cache, find_work(cache, data, IDENTITY), encoders, 1, stop)
    work = find_work(Cache(tmp_path / "cache"), data, IDENTITY)
    assert (len(work.views), len(work.prompts)) == left
    undisturbed, _ = run(tmp_path / "other", data, encoders)
    cache, _ = run(tmp_path, data, encoders)
    assert cache.digest_of(cache.items) == undisturbed.digest_of(undisturbed.items)
    assert len(cache) == 6 + 7


class SmallMemory:
    """An encoder with room for a few inputs at a time."""

    def __init__(self, inner, room):
        self.inner, self.room, self.sizes = inner, room, []

    def encode(self, inputs):
        self.sizes.append(len(inputs))
        if len(inputs) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.inner.encode(inputs)


def test_running_out_of_memory_halves_the_batch_from_then_on(tmp_path, encoders):
    data = dataset(tmp_path, pictures())
    image, text = SmallMemory(encoders.image, 1), SmallMemory(encoders.text, 4)
    cache, report = run(tmp_path, data, Encoders(text, image), batch=3)
    assert image.sizes == [3, 1, 1, 1, 1, 1, 1]
    assert text.sizes == [7, 3, 3, 1]
    assert "images were encoded 1 at a time" in report.text()
    plain, report = run(tmp_path / "plain", data, encoders)
    assert not report.notes
    assert cache.items.keys() == plain.items.keys()
    for key in cache.items:
        for name, tensor in plain.get(key).items():
            assert torch.allclose(cache.get(key)[name], tensor, atol=1e-5)


def test_when_not_even_one_fits_the_remedy_is_told_and_nothing_is_lost(tmp_path, encoders):
    data = dataset(tmp_path, pictures())

    class Worse(SmallMemory):
        def encode(self, inputs):
            self.room = 0 if len(self.sizes) >= 2 else 1
            return super().encode(inputs)

    with pytest.raises(RunError, match=r"single one of the images: set memory\.vae_tiling = true"):
        run(tmp_path, data, Encoders(encoders.text, Worse(encoders.image, 1)))
    assert len(Cache(tmp_path / "cache")) == 2


def test_tiles_are_used_and_cached_apart(tmp_path):
    """Of a VAE whose tiles are smaller than the image; the key must say so, since the latents differ."""
    base = open_base(ModelConfig(base=str(tiny_folder("sd")), device="cpu"))
    plain, tiled = base.encoder_identity(), base.encoder_identity(tiled=True)
    assert plain.vae != tiled.vae
    assert plain.text == tiled.text
    codec = base.load_encoders(tiled=True).image
    codec.module.tile_sample_min_size, codec.module.tile_latent_min_size = 32, 4
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = base.load_encoders().image.encode(pixels)
    assert codec.encode(pixels).shape == whole.shape
    assert not torch.equal(codec.encode(pixels), whole)


def test_an_image_that_changes_while_it_is_cached_is_not_cached_as_what_it_was(tmp_path, encoders):
    folder = tmp_path / "copy"
    shutil.copytree(pictures(), folder)
    data = dataset(tmp_path, folder)
    Image.new("RGB", (64, 64), "teal").save(folder / "5.png")
    with pytest.raises(DataError, match=r"5\.png has changed since the dataset was read: run this again"):
        run(tmp_path, data, encoders)
    assert run(tmp_path, dataset(tmp_path, folder), encoders)[1].encoded == 8


def test_a_full_disk_is_told(tmp_path, encoders, monkeypatch):
    def full(*args):
        raise RunError("cannot write: No space left on device")

    monkeypatch.setattr("lora_loom.trainer.data.cache.store.write_shard", full)
    with pytest.raises(RunError, match="No space left"):
        run(tmp_path, dataset(tmp_path, pictures()), encoders)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_shards_end_where_batches_end(tmp_path, batch, monkeypatch):
    """So that what is encoded together, and with it the last bits, does not depend on where an earlier run was cut off."""
    together = []

    class Codec:
        factor = 8

        def encode(self, pixels_BCHW):
            together.append(len(pixels_BCHW))
            return pixels_BCHW[:, :1, ::8, ::8]

    class Text:
        def encode(self, prompts):
            return [{"text": torch.zeros(1)} for _ in prompts]

    monkeypatch.setattr(fill_module, "ITEMS_PER_SHARD", 4)
    data = dataset(tmp_path, pictures())
    cache, _ = run(tmp_path, data, Encoders(Text(), Codec()), batch)
    sizes = [len(shard.items) for shard in cache.shards.values()]
    assert together == {1: [1] * 6, 5: [3, 3], 40: [3, 3]}[batch], "two sizes of image, three each"
    assert sizes[0] == {1: 4, 5: 6, 40: 6}[batch]
