"""kill -9 at random moments while a cache is filled: the next process goes on, at most the items in flight are encoded again,
and what is in the cache in the end is bit for bit what an undisturbed one holds."""

import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.cache.fill import ITEMS_PER_SHARD, fill
from lora_loom.trainer.data.cache.keys import find_work
from lora_loom.trainer.data.cache.maintenance import verify
from lora_loom.trainer.data.cache.store import Cache
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.sets.dataset import build_dataset
from lora_loom.trainer.families.common.family import Encoders
from lora_loom.trainer.types import EncoderIdentity

from .common import report
from .data import write_pictures

KILLS = int(os.environ.get("LOOM_BENCH_KILLS", "100"))
BATCH = 4
IN_FLIGHT = 2 * ITEMS_PER_SHARD + BATCH
"""One shard that is gathered, one that is written, one batch that is encoded."""


class CountingEncoders:
    """Cheap and exact; counts, where another process can read it, what was encoded."""

    factor = 8

    def __init__(self, counter: Any) -> None:
        self.counter = counter

    def encode(self, inputs: Any) -> Any:
        time.sleep(0.001 * len(inputs))
        if isinstance(inputs, Tensor):
            made: Any = torch.nn.functional.avg_pool2d(inputs, 8)
        else:
            made = [{"text": torch.full((8, 8), float(len(text)))} for text in inputs]
        self.counter.value += len(inputs)
        return made


def fill_once(root: Path, cache: Path, counter: Any) -> None:
    """What `lora-loom cache` does, from looking at the files on."""
    encoders = CountingEncoders(counter)
    sets = [DatasetConfig(folder=str(root / "images"), captions="sidecar")]
    silent = lambda *progress: None  # noqa: E731
    dataset = build_dataset(sets, DataConfig(resolution=64), 16, 0, FileIndex(cache / "files.json"), silent)
    store = Cache(cache)
    work = find_work(store, dataset, EncoderIdentity(vae="v", text="t"))
    fill(store, work, Encoders(encoders, encoders), BATCH, silent)


def disturbed(root: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Fill a cache over and over, killing it at random moments; a full one is emptied and begun anew."""
    context = multiprocessing.get_context("fork")
    counter, rng = context.Value("q", 0), random.Random(seed)
    started = time.perf_counter()
    fill_once(root, root / "undisturbed", counter)
    seconds, whole = time.perf_counter() - started, Cache(root / "undisturbed")
    expected, done = whole.digest_of(whole.items), 0
    worst, killed, filled, times = 0, 0, 0, 0
    cache = root / "cache-0"
    while killed < kills:
        counter.value, before = 0, len(Cache(cache))
        child = context.Process(target=fill_once, args=(root, cache, counter))
        child.start()
        child.join(rng.uniform(0, 0.7 * seconds))
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            killed += 1
        assert child.exitcode in (0, -signal.SIGKILL), f"the process after a kill failed: {child.exitcode}"
        store = Cache(cache)
        lost = counter.value - (len(store) - before)
        worst, times = max(worst, lost), times + (lost > 0)
        assert not store.quarantined, "a kill left half a shard under its final name"
        if child.exitcode == 0 or killed == kills:
            fill_once(root, cache, counter)
            assert not verify(Cache(cache), lambda *progress: None).damaged
            filled, done = filled + 1, done + (Cache(cache).digest_of(expected_keys(whole)) == expected)
            cache = root / f"cache-{filled}"
    return {"kills": killed, "caches filled": filled, "bit for bit as undisturbed": done, "kills that cost items": times,
            "most items encoded again": worst}  # fmt: skip


def expected_keys(whole: Cache) -> list[str]:
    return list(whole.items)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loom-bench-") as folder:
        write_pictures(Path(folder) / "images", 200, side=64)
        found = disturbed(Path(folder), KILLS)
    report("kills", {**found, "items in flight, the aim for the most": IN_FLIGHT})
    assert found["most items encoded again"] <= IN_FLIGHT
    assert found["bit for bit as undisturbed"] == found["caches filled"]


if __name__ == "__main__":
    main()
