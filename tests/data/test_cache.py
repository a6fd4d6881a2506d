"""The cache: keys say what made the tensors, contents are stored once, writes are whole, damage costs a re-encode."""

import json
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.data.cache import Cache, latent_key, text_key
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.identity import tensor_digest
from lora_loom.trainer.records import Geometry

GEOMETRY = Geometry(original=(90, 60), resized=(96, 64), crop_left=0, crop_top=0, target=(96, 64))
texts = st.text(max_size=20)


def item(seed, shape=(4, 8, 8)):
    return {"latents": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def test_round_trip_is_exact(tmp_path):
    cache = Cache(tmp_path)
    stored = {"a": item(1), "b": {**item(2), "mask": torch.ones(1, 8, 8)}, "c": {"text": torch.zeros(0, 4)}}
    cache.put(stored)
    for reader in (cache, Cache(tmp_path)):
        for key, tensors in stored.items():
            found = reader.get(key)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert cache.shapes("b") == {"latents": (4, 8, 8), "mask": (1, 8, 8)}


def test_missing_keeps_order_and_drops_doubles(tmp_path):
    cache = Cache(tmp_path)
    cache.put({"b": item(1)})
    assert cache.missing(["c", "b", "a", "c"]) == ["c", "a"]


def test_equal_tensors_are_stored_once(tmp_path):
    cache = Cache(tmp_path)
    first = cache.put({"a": item(1)})
    assert cache.put({"b": item(1)}) == 0
    assert first == 4 * 8 * 8 * 4
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@given(a=texts, b=texts, vae=st.sampled_from(["v1", "v2"]), other=st.sampled_from(["v1", "v2"]))
def test_text_keys_differ_iff_inputs_differ(a, b, vae, other):
    assert (text_key(a, vae) == text_key(b, other)) == ((a, vae) == (b, other))


@pytest.mark.parametrize(
    "changes",
    [{"resized": (97, 64)}, {"crop_left": 1}, {"crop_top": 1}, {"target": (64, 64)}, {"flip": True}],
    ids=str,
)
def test_latent_keys_follow_the_geometry(changes):
    key = latent_key("image", GEOMETRY, "white", ["", ""], "vae")
    assert key != latent_key("image", replace(GEOMETRY, **changes), "white", ["", ""], "vae")
    assert key == latent_key("image", replace(GEOMETRY, original=(1, 1)), "white", ["", ""], "vae"), (
        "only what reaches the pixels"
    )


def test_latent_keys_follow_everything_else():
    keys = {
        latent_key(image, GEOMETRY, background, [mask, reference], vae)
        for image in ("i1", "i2")
        for background in ("white", "black")
        for mask in ("", "m")
        for reference in ("", "r", "m")
        for vae in ("v1", "v2")
    }
    assert len(keys) == 48


def test_tensor_digest_sees_shape_dtype_and_bytes():
    base = torch.arange(6.0)
    variants = [base, base.reshape(2, 3), base.double(), base + 1e-6, base.bfloat16()]
    assert len({tensor_digest(tensor) for tensor in variants}) == len(variants)
    assert tensor_digest(base.flip(0).flip(0)) == tensor_digest(base)


def test_damaged_shard_is_not_used(tmp_path):
    Cache(tmp_path).put({"a": item(1)})
    Cache(tmp_path).put({"b": item(2)})
    shard = max(tmp_path.glob("*.safetensors"), key=lambda path: path.name)
    os.truncate(shard, 100)
    cache = Cache(tmp_path)
    assert cache.quarantined == [shard.name]
    assert len(cache.missing(["a", "b"])) == 1
    cache.put({key: item(1 if key == "a" else 2) for key in cache.missing(["a", "b"])})
    assert torch.equal(Cache(tmp_path).get("a")["latents"], item(1)["latents"])
    assert torch.equal(Cache(tmp_path).get("b")["latents"], item(2)["latents"])


def test_same_length_damage_is_a_clear_error(tmp_path):
    Cache(tmp_path).put({"a": item(1)})
    [shard] = tmp_path.glob("*.safetensors")
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(RunError, match="is damaged .* delete it"):
        Cache(tmp_path).get("a")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"items": 3, "tensors": {}, "shards": {}}'])
def test_damaged_index_costs_only_the_index(tmp_path, content):
    Cache(tmp_path).put({"a": item(1)})
    (tmp_path / "index.json").write_text(content)
    cache = Cache(tmp_path)
    assert cache.missing(["a"]) == ["a"]
    cache.put({"a": item(1)})
    assert Cache(tmp_path).missing(["a"]) == []


def test_no_temporary_files_stay(tmp_path):
    Cache(tmp_path).put({"a": item(1)})
    assert not list(tmp_path.glob("*.tmp"))
    assert json.loads((tmp_path / "index.json").read_text())["version"] == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for name in ("ab.safetensors.77.tmp", "index.json.77.tmp", "files.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    Cache(tmp_path).put({"a": item(1)})
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["files.json.77.tmp"], "written without this lock"


def _put_many(folder, first):
    cache = Cache(folder)
    for number in range(first, first + 8):
        cache.put({f"key-{number}": item(number, (2, 2))})


def test_two_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    workers = [context.Process(target=_put_many, args=(tmp_path, first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    cache = Cache(tmp_path)
    for number in [*range(8), *range(100, 108)]:
        assert torch.equal(cache.get(f"key-{number}")["latents"], item(number, (2, 2))["latents"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_a_cache_that_holds_what_it_says(tmp_path):
    """SIGKILL at any moment of writing: every key of the index reads back exactly, and the next process goes on."""
    import random
    import signal
    import time

    rng = random.Random(0)
    for first in range(0, 400, 50):
        child = os.fork()
        if child == 0:
            try:
                for number in range(first, first + 50):
                    Cache(tmp_path).put({f"key-{number}": item(number, (4, 8, 8))})
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cache = Cache(tmp_path)
        assert cache.quarantined == []
        for key in (f"key-{number}" for number in range(first + 50)):
            if not cache.missing([key]):
                assert torch.equal(cache.get(key)["latents"], item(int(key[4:]), (4, 8, 8))["latents"])
    stored = 400 - len(cache.missing([f"key-{number}" for number in range(400)]))
    assert 0 < stored < 400, "some were written, some were cut off"
    Cache(tmp_path).put({"last": item(1)})
    assert not list(tmp_path.glob("*.tmp"))
