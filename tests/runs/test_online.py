"""Without a cache on disk: the same run, and nothing is left behind but what it made."""

import shutil
import threading

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_loom.trainer.data.cache.keys import views
from lora_loom.trainer.data.cache.online import OnlineItems, SharedEncoders
from lora_loom.trainer.errors import DataError
from lora_loom.trainer.families.common.family import Encoders
from lora_loom.trainer.runs.headless import build_cache, dataset_batches, prepare, train
from tests.conftest import SilentHost, make_config, pictures, tiny_folder


@pytest.fixture
def scenes(tmp_path):
    """Pictures with masks and reference pictures."""
    for name in ("images", "masks", "before"):
        shutil.copytree(pictures(), tmp_path / name)
    for path in (tmp_path / "masks").glob("*.png"):
        Image.linear_gradient("L").resize(Image.open(path).size).save(path)
    return tmp_path


def config_of(family, scenes, cache, name="run", **sections):
    dataset = {"folder": str(scenes / "images"), "masks": str(scenes / "masks"), "flip": True, "caption_dropout": 0.2}
    if family == "flux":
        sections |= {"model": {"base": str(tiny_folder("flux")), "variant": "kontext"}}
        dataset["references"] = str(scenes / "before")
    return make_config(
        family, scenes, name=name, dataset=[dataset], data={"resolution": 64, "bucket_step": 32, "validation_split": 0.2},
        memory={"cache": cache}, output={"directory": str(scenes), "cache": str(scenes / f"cache-{name}")}, **sections,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_the_run_is_the_one_with_a_cache(family, scenes):
    """Texts are encoded together for the cache and one by one online, so their last digits may differ."""
    made = {}
    for mode in ("disk", "online"):
        host = SilentHost()
        outcome = train(config_of(family, scenes, mode, mode), host)
        made[mode] = ([step.loss for step in host.steps], host.measures, load_file(outcome.lora))
    disk, online = made["disk"], made["online"]
    assert online[0] == pytest.approx(disk[0], rel=1e-4)
    for step, values in disk[1].items():
        assert online[1][step] == pytest.approx(values, rel=1e-4)
    assert disk[2].keys() == online[2].keys()
    for key, tensor in disk[2].items():
        torch.testing.assert_close(online[2][key].float(), tensor.float(), rtol=2e-2, atol=2e-4)  # files are bfloat16
    left = {path.name for path in (scenes / "cache-online").rglob("*") if path.is_file()}
    assert left == {"files.json", "files.lock"}, "what is known of the files, and nothing that was encoded"


def test_latents_are_those_of_the_cache_bit_for_bit(scenes):
    batches = {}
    for mode in ("disk", "online"):
        prepared = prepare(config_of("flux", scenes, mode, mode), SilentHost())
        build_cache(prepared, SilentHost())
        batches[mode] = dataset_batches(prepared, prepared.dataset.training)
    for position in range(2 * batches["disk"].plan.per_epoch):
        kept, made = (batches[mode].at(position) for mode in ("disk", "online"))
        assert torch.equal(kept.latents_BCHW, made.latents_BCHW)
        assert torch.equal(kept.mask_B1HW, made.mask_B1HW)
        assert torch.equal(kept.conditioning["reference"], made.conditioning["reference"])


def test_a_stopped_run_goes_on_as_if_it_had_not(scenes):
    whole = train(config_of("sd", scenes, "online", "whole"), SilentHost())
    train(config_of("sd", scenes, "online", "parts"), SilentHost(stop_at=2))
    parts = train(config_of("sd", scenes, "online", "parts"), SilentHost())
    one, other = load_file(whole.lora), load_file(parts.lora)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_picture_that_changes_under_the_run_ends_it_by_name(scenes):
    prepared = prepare(config_of("sd", scenes, "online"), SilentHost())
    batches = dataset_batches(prepared, prepared.dataset.training)
    for path in (scenes / "images").glob("*.png"):
        Image.new("RGB", Image.open(path).size).save(path)
    with pytest.raises(DataError, match=r"\d\.png has changed since the dataset was read: run this again"):
        batches.at(0)


def test_encoders_are_loaded_once_and_used_by_one_thread_at_a_time(scenes):
    """The batch reader and the measuring run share them."""
    prepared = prepare(config_of("sd", scenes, "online"), SilentHost())
    inside, most, loaded = 0, 0, 0

    class Codec:
        def encode(self, pixels_BCHW):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.005)
            inside -= 1
            return pixels_BCHW[:, :, ::8, ::8]

    def load():
        nonlocal loaded
        loaded += 1
        return Encoders(None, Codec())

    items = OnlineItems(prepared.dataset.examples, "vae", SharedEncoders(load))
    keys = [view.key("vae") for example in prepared.dataset.examples for view in views(example)]
    threads = [
        threading.Thread(target=lambda part=part: [items.get(key) for key in keys[part::3]]) for part in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (loaded, most) == (1, 1)
    assert items.missing([*keys, "a text"]) == ["a text"]
