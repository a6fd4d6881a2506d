"""What the cache leaves on disk: names, numbers, sizes and times, read without the cache's own code where that could forgive."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from lora_loom.trainer.data.cache import store as store_module
from lora_loom.trainer.data.cache.shards import number_of, read_shard, write_shard
from lora_loom.trainer.data.cache.store import Cache
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.storage.fingerprint import tensor_digest
from lora_loom.trainer.storage.tensor_file import ReadTensors


def tensor(seed, *shape):
    return torch.randn(shape or (4, 8, 8), generator=torch.Generator().manual_seed(seed))


def names(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def shard_of(folder, number, **items):
    """A shard whose items need not lie in it: {key: (tensor, whether it is stored here)}."""
    stored = {tensor_digest(value): value for value, here in items.values() if here}
    return write_shard(folder, number, {key: {"latents": tensor_digest(v)} for key, (v, _) in items.items()}, stored)


def test_shards_are_numbered_from_one_in_the_order_of_writing(tmp_path):
    cache = Cache(tmp_path)
    for number, key in enumerate("abc"):
        cache.put({key: {"latents": tensor(number)}})
    assert [name.split("-")[0] for name in names(tmp_path)] == ["000001", "000002", "000003"]
    Cache(tmp_path).put({"d": {"latents": tensor(9)}})
    assert names(tmp_path)[-1].startswith("000004-")


def test_a_shard_is_read_back_as_it_was_written(tmp_path):
    """Sizes too, of tensors that do not lie at the beginning of the file."""
    parts = {"one": tensor(1, 3), "two": tensor(2, 5, 7), "three": tensor(3, 2).bfloat16()}
    stored = {tensor_digest(value): value for value in parts.values()}
    shard = write_shard(tmp_path, 12, {"key": {name: tensor_digest(v) for name, v in parts.items()}}, stored)
    assert shard.tensors == {tensor_digest(value): value.nbytes for value in parts.values()}
    assert read_shard(tmp_path, shard.name) == shard
    assert shard.number == number_of(shard.name) == 12
    assert shard.bytes == (tmp_path / shard.name).stat().st_size


def test_a_shard_is_a_plain_safetensors_file(tmp_path):
    shard = write_shard(tmp_path, 1, {"key": {"latents": "digest"}}, {"digest": tensor(1, 4)})
    content = (tmp_path / shard.name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["items"]) == {"key": {"latents": "digest"}}
    assert header == {"digest": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


def test_of_two_shards_with_a_key_the_older_counts(tmp_path):
    """Whatever their digests are: numbers decide, also after a rebuild and where ten comes after nine."""
    for turn, (older, younger) in enumerate([(1, 2), (9, 10), (2, 11)]):
        for seed in range(4):
            folder = tmp_path / f"{turn}-{seed}"
            folder.mkdir()
            shard_of(folder, younger, a=(tensor(10 + seed), True))
            shard_of(folder, older, a=(tensor(20 + seed), True))
            cache = Cache(folder)
            assert torch.equal(cache.get("a")["latents"], tensor(20 + seed))
            lone = shard_of(folder, 20, b=(tensor(1), True))
            cache.reload()
            cache.quarantine(lone.name)  # rebuilds
            assert torch.equal(cache.get("a")["latents"], tensor(20 + seed))


def test_an_item_may_use_a_tensor_that_a_younger_shard_had_to_write_again(tmp_path):
    """As after its own shard's tensor was lost and put once more; also when the first shard is read alone at first."""
    shard_of(tmp_path, 1, a=(tensor(1), False), b=(tensor(2), True))
    waiting = Cache(tmp_path)
    assert waiting.missing("ab") == ["a"]
    shard_of(tmp_path, 2, c=(tensor(1), True))
    waiting.reload()
    for cache in (waiting, Cache(tmp_path)):
        assert cache.missing("abc") == []
        assert torch.equal(cache.get("a")["latents"], tensor(1))
        assert cache.home_of("a").startswith("000001-")


def test_a_users_own_file_in_the_folder_is_left_alone(tmp_path):
    Cache(tmp_path).put({"a": {"latents": tensor(1)}})
    for name in ("mine.safetensors", "000001-mine.safetensors", "1.safetensors"):
        save_file({"x": tensor(2)}, tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    cache = Cache(tmp_path)
    cache.put({"b": {"latents": tensor(3)}})
    assert (len(cache.shards), cache.quarantined) == (2, [])
    assert not (tmp_path / "quarantine").exists()
    assert before.items() <= {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}.items()


def test_every_damaged_shard_goes_to_quarantine(tmp_path):
    """Also the second one, when the folder is already there, and one that is found while reading."""
    for number, key in enumerate("abc"):
        Cache(tmp_path).put({key: {"latents": tensor(number)}})
    first, second, third = names(tmp_path)
    os.truncate(tmp_path / first, 100)
    assert Cache(tmp_path).quarantined == [first]
    os.truncate(tmp_path / second, 100)
    cache = Cache(tmp_path)
    assert cache.quarantined == [second]
    content = bytearray((tmp_path / third).read_bytes())
    content[-1] ^= 1
    (tmp_path / third).write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        cache.get("c")
    assert names(tmp_path) == []
    assert names(tmp_path / "quarantine") == [first, second, third]


def test_the_time_of_a_shard_is_written_once_an_hour(tmp_path):
    cache = Cache(tmp_path)
    cache.put({"fresh": {"latents": tensor(1)}})
    cache.put({"old": {"latents": tensor(2)}})
    now, (fresh, old) = time.time(), names(tmp_path)
    os.utime(tmp_path / fresh, (now - 1800, now - 1800))
    os.utime(tmp_path / old, (now - 4000, now - 4000))
    before = (tmp_path / fresh).stat().st_mtime_ns
    cache.touch(["fresh", "old"])
    assert (tmp_path / fresh).stat().st_mtime_ns == before
    assert (tmp_path / old).stat().st_mtime >= now - 5


def test_shards_stay_open_up_to_a_limit(tmp_path, monkeypatch):
    """The one that was used longest ago is closed first; what is used again and again is opened once."""
    cache = Cache(tmp_path)
    for number, key in enumerate("abc"):
        cache.put({key: {"latents": tensor(number)}})
    opened, real = [], store_module.ReadTensors

    def counted(path):
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(store_module, "ReadTensors", counted)
    monkeypatch.setattr(store_module, "OPEN_FILES", 2)
    a, b, c = names(tmp_path)
    for key in "aabab":
        cache.get(key)
    assert opened == [a, b]
    for key in "cbab":  # c closes a, which was used before b; a then closes c
        cache.get(key)
    assert opened == [a, b, c, a]
    monkeypatch.setattr(store_module, "OPEN_FILES", 1)
    for key in "ccc":
        cache.get(key)
    assert opened == [a, b, c, a, c], "the one in use stays open, however large"


@pytest.mark.parametrize("length", [0, 40, -1])
def test_a_shard_that_shrinks_while_it_is_open_is_an_error_that_sets_it_aside(tmp_path, length):
    """A map of such a file would end the process (SIGBUS)."""
    cache = Cache(tmp_path)
    cache.put({"a": {"latents": tensor(1), "mask": tensor(2)}})
    cache.shapes("a")
    [path] = tmp_path.glob("*.safetensors")
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    with pytest.raises(RunError, match=r"damaged .*was moved to .*quarantine"):
        cache.get("a")
    assert not path.exists()
    assert cache.missing(["a"]) == ["a"]


def test_tensors_that_are_read_are_those_that_safetensors_reads(tmp_path):
    from safetensors.torch import load_file, save_file

    made = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.empty(0, 4), "c": torch.tensor(3.5, dtype=torch.float64),
        "d": torch.tensor([True, False]), "e": torch.ones(3, dtype=torch.float8_e4m3fn), "f": torch.arange(5, dtype=torch.int64),
    }  # fmt: skip
    save_file(made, tmp_path / "x.safetensors", {"k": "v"})
    file, expected = ReadTensors(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")
    assert file.metadata() == {"k": "v"}
    assert set(file.keys()) == expected.keys()
    for name, value in expected.items():
        found = file.get_tensor(name)
        assert found.dtype == value.dtype
        assert tuple(file.get_slice(name).get_shape()) == tuple(found.shape) == tuple(value.shape)
        assert found.reshape(-1).view(torch.uint8).equal(value.reshape(-1).view(torch.uint8))
