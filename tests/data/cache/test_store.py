"""The cache: keys say what made the tensors, contents are stored once, writes are whole, damage costs a re-encode."""

import multiprocessing
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_loom.trainer.data.cache import store as cache_module
from lora_loom.trainer.data.cache.maintenance import prune, stats, verify
from lora_loom.trainer.data.cache.store import Cache, latent_key, text_key
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.storage.fingerprint import tensor_digest
from lora_loom.trainer.types import Geometry

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
    assert sum(len(shard.tensors) for shard in cache.shards.values()) == 1
    assert torch.equal(Cache(tmp_path).get("b")["latents"], item(1)["latents"])


@given(a=texts, b=texts, vae=st.sampled_from(["v1", "v2"]), other=st.sampled_from(["v1", "v2"]))
def test_text_keys_differ_iff_inputs_differ(a, b, vae, other):
    assert (text_key(a, vae) == text_key(b, other)) == ((a, vae) == (b, other))


sides = st.tuples(st.integers(1, 3), st.integers(1, 3))
names = st.sampled_from(["", "a", "b", "ab"])
latent_inputs = st.tuples(
    names,
    st.builds(
        Geometry,
        original=sides,
        resized=sides,
        crop_left=st.integers(0, 2),
        crop_top=st.integers(0, 2),
        target=sides,
        flip=st.booleans(),
    ),
    names,
    st.lists(names, min_size=2, max_size=2),
    names,
)


@given(first=latent_inputs, second=latent_inputs, change=st.integers(0, 5))
def test_latent_keys_differ_iff_what_reaches_the_pixels_differs(first, second, change):
    """Mixed pairs too: equal but for one part, which is where a key that joins its parts carelessly would fail."""
    mixed = (*first[:change], *second[change : change + 1], *first[change + 1 :])
    for other in (second, mixed, first):
        same = [replace(inputs[1], original=(1, 1)) for inputs in (first, other)]
        equal = (first[0], same[0], *first[2:]) == (other[0], same[1], *other[2:])
        assert (latent_key(*first) == latent_key(*other)) == equal


@given(first=latent_inputs, text=texts, encoder=names)
def test_latents_and_texts_have_no_key_in_common(first, text, encoder):
    assert latent_key(*first) != text_key(text, encoder)


def test_another_code_version_is_another_key(monkeypatch):
    before = latent_key("image", GEOMETRY, "white", ["", ""], "vae"), text_key("a", "b")
    monkeypatch.setattr(cache_module, "CODE_VERSION", cache_module.CODE_VERSION + 1)
    after = latent_key("image", GEOMETRY, "white", ["", ""], "vae"), text_key("a", "b")
    assert not set(before) & set(after)


def test_tensor_digest_sees_shape_dtype_and_bytes():
    base = torch.arange(6.0)
    variants = [base, base.reshape(2, 3), base.double(), base + 1e-6, base.bfloat16()]
    assert len({tensor_digest(tensor) for tensor in variants}) == len(variants)
    assert tensor_digest(base.flip(0).flip(0)) == tensor_digest(base)


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def two(tmp_path):
    """A cache of two shards, a and b."""
    for number, key in enumerate("ab"):
        Cache(tmp_path).put({key: item(number)})
    return tmp_path


def test_a_cut_shard_is_set_aside_and_written_anew(two):
    cut = shards(two)[0]
    os.truncate(cut, cut.stat().st_size - 1)
    cache = Cache(two)
    assert cache.quarantined == [cut.name]
    assert (two / "quarantine" / cut.name).is_file()
    assert not cut.exists()
    assert cache.missing(["a", "b"]) == ["a"]
    cache.put({"a": item(0)})
    for reader in (cache, Cache(two)):
        assert [torch.equal(reader.get(key)["latents"], item(n)["latents"]) for n, key in enumerate("ab")] == [
            True,
            True,
        ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(two, place, bit):
    """In the length, the header or the data: never a wrong tensor, never a crash, and the other shard is untouched."""
    whole = shards(two)[0].read_bytes()
    rotten = bytearray(whole)
    rotten[int(place * len(whole))] ^= 1 << bit
    name = shards(two)[0].name
    (two / name).write_bytes(rotten)
    cache = Cache(two)
    if not cache.missing(["a"]):
        with pytest.raises(RunError, match="is damaged: it was moved to .*quarantine; run this again"):
            cache.get("a")
    assert cache.missing(["a", "b"]) == ["a"]
    assert cache.quarantined == [name]
    assert torch.equal(cache.get("b")["latents"], item(1)["latents"])
    (two / name).write_bytes(whole)
    assert torch.equal(Cache(two).get("a")["latents"], item(0)["latents"])


def test_verify_finds_rot_that_nobody_has_read(two):
    path = shards(two)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cache, seen = Cache(two), []
    found = verify(cache, lambda done, total: seen.append((done, total)))
    assert (found.shards, found.items, found.damaged, found.lost) == (1, 1, [path.name], 1)
    assert cache.missing(["a", "b"]) == ["b"]
    assert verify(Cache(two), lambda *p: None).damaged == []


def test_an_item_whose_tensor_lies_in_a_damaged_shard_is_missing(tmp_path):
    """b shares its tensor with a, so it is stored with a."""
    Cache(tmp_path).put({"a": item(1)})
    Cache(tmp_path).put({"b": item(1), "c": item(2)})
    os.truncate(shards(tmp_path)[0], 50)
    cache = Cache(tmp_path)
    assert cache.missing("abc") == ["a", "b"]
    cache.put({"b": item(1)})
    assert cache.missing("abc") == ["a"]
    assert torch.equal(Cache(tmp_path).get("b")["latents"], item(1)["latents"])


def test_the_older_of_two_values_counts(tmp_path):
    """Two processes that encoded the same on a GPU differ in the last bits; everyone must read the same."""
    slow = Cache(tmp_path)
    Cache(tmp_path).put({"a": item(1)})
    assert slow.put({"a": item(2), "b": item(3)}) == item(3)["latents"].nbytes
    for reader in (slow, Cache(tmp_path)):
        assert torch.equal(reader.get("a")["latents"], item(1)["latents"])
        assert torch.equal(reader.get("b")["latents"], item(3)["latents"])


def test_a_folder_that_may_only_be_read(two, monkeypatch):
    os.truncate(shards(two)[0], 50)
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(PermissionError()))
    cache = Cache(two)
    cache.reload()
    assert cache.missing(["a", "b"]) == ["a"]
    assert cache.quarantined == [shards(two)[0].name]


def test_no_temporary_files_stay(tmp_path):
    Cache(tmp_path).put({"a": item(1)})
    assert not list(tmp_path.glob("*.tmp"))


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for name in ("ab.safetensors.77.tmp", "files.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    Cache(tmp_path).put({"a": item(1)})
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["files.json.77.tmp"], "written without this lock"


def test_stats(two):
    Cache(two).put({"c": {"latents": item(0)["latents"], "mask": torch.ones(1, 8, 8)}})
    found = stats(Cache(two))
    assert (found.shards, found.items, found.tensors, found.shared) == (3, 3, 3, 1)
    assert found.names == {"latents": 3, "mask": 1}
    assert found.bytes == sum(path.stat().st_size for path in shards(two))


def test_prune_keeps_exactly_what_is_wanted(tmp_path):
    """Shards that are needed in part are written anew; a tensor that is still used stays, whoever stored it first."""
    cache = Cache(tmp_path)
    cache.put({"a": item(1), "b": item(2)})
    cache.put({"c": item(1), "d": item(3)})
    cache.put({"e": item(4)})
    planned = prune(Cache(tmp_path), keep={"c", "e", "unknown"}, dry=True)
    assert len(Cache(tmp_path)) == 5
    done = prune(cache, keep={"c", "e", "unknown"})
    assert (done.items, done.shards) == (planned.items, planned.shards) == (3, 0)
    for reader in (cache, Cache(tmp_path)):
        assert reader.missing("abcde") == ["a", "b", "d"]
        assert torch.equal(reader.get("c")["latents"], item(1)["latents"])
        assert torch.equal(reader.get("e")["latents"], item(4)["latents"])
    assert verify(Cache(tmp_path), lambda *p: None).bytes < 3 * 1500
    assert prune(cache, keep=set()).items == 2
    assert not shards(tmp_path)


def test_prune_by_last_use(two):
    for path in shards(two):
        os.utime(path, (0, 0))
    cache = Cache(two)
    cache.touch(["b"])
    assert prune(cache, unused_days=30).items == 1
    assert cache.missing("ab") == ["a"]
    assert prune(cache).items == 0, "without a rule only leftovers go"


def test_prune_takes_leftovers(two):
    (two / "quarantine").mkdir()
    for name in ("quarantine/x", "index.json", "0123.safetensors", "5.safetensors.7.8.tmp"):
        (two / name).write_bytes(b"x")
    assert prune(Cache(two), dry=True).leftovers == 4
    assert prune(Cache(two)).leftovers == 4
    assert len(Cache(two)) == 2
    assert sorted(path.name for path in two.rglob("*") if path.is_file() and path.suffix != ".lock") == [
        p.name for p in shards(two)
    ]


def test_a_reader_survives_pruning_by_another(two):
    reader = Cache(two)
    Cache(two).put({"c": item(5), "d": item(6)})
    late = Cache(two)
    prune(Cache(two), keep={"a", "c"})
    assert torch.equal(reader.get("a")["latents"], item(0)["latents"])
    assert torch.equal(late.get("c")["latents"], item(5)["latents"])
    with pytest.raises(KeyError):
        late.get("d")


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
