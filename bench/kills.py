"""kill -9 at random moments, and nothing is lost: `python -m bench kills --kills 1000 --seed 0`.

Every stage (cache, run, a run of the graph, sweep, strip, score) is begun over and over in children of a warm process and killed; what is there when
it ends at last must be bit for bit what an undisturbed one leaves, with no temporary file. `--points` kills at every operation on
a file instead, one after another, none skipped (`--stage score`: of one stage alone). While a large cache is filled, at most the items in flight are encoded again.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
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

from .common import keep, report
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


class Stage:
    """A stage in a folder of its own, what it leaves undisturbed, and how often that did not come about."""

    def __init__(self, name: str, folder: Path) -> None:
        from tests.kill_stages import STAGES, comparable
        from tests.kills import in_child

        before, self._act = STAGES[name]
        self.name, self.root, self.start = name, folder / name, folder / f"{name}-before"
        self.comparable, self.in_child = comparable, in_child
        self.counts: Counter[str] = Counter()
        self.root.mkdir()
        for act in before:
            self.done(act, self.root)
        shutil.copytree(self.root, self.start)
        began = time.perf_counter()
        self.done(self.act)
        self.seconds, self.expected = time.perf_counter() - began, comparable(self.root)
        self.again()

    def act(self) -> None:
        self._act(self.root)

    def done(self, act: Callable[..., None], *arguments: Any) -> None:
        if code := self.in_child(act, *arguments):
            raise RuntimeError(f"{self.name} ended with code {code}")

    def again(self) -> None:
        """The folder as it was before the stage."""
        shutil.rmtree(self.root)
        shutil.copytree(self.start, self.root)

    def check(self) -> None:
        """Compare what is there after the stage has ended; count what is lost, other, or left behind."""
        found = self.comparable(self.root)
        self.counts["ended"] += 1
        self.counts["files lost"] += len(self.expected.keys() - found.keys())
        self.counts["files that differ"] += sum(found.get(name, one) != one for name, one in self.expected.items())
        self.counts["files too many"] += len(found.keys() - self.expected.keys())
        self.again()

    def killed_at_random(self, rng: random.Random) -> None:
        """One start and one kill; a stage that was faster than the kill is checked."""
        child = multiprocessing.get_context("fork").Process(target=self.act)
        child.start()
        child.join(rng.uniform(0, self.seconds))
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
        if child.exitcode == 0:
            self.check()
        elif child.exitcode == -signal.SIGKILL:
            self.counts["kills"] += 1
        else:
            self.counts["failed starts"] += 1
            self.again()

    def killed_everywhere(self, first: int, end: float) -> None:
        """A kill at every operation on a file, from the `first` one on, each followed by one start that ends; until `end` (monotonic)."""
        from tests.kills import KillAt, installed

        def until(number: int) -> None:
            with installed(self.root, KillAt(number)):
                self.act()

        code = 0
        while time.monotonic() < end and (code := self.in_child(until, first)) == -signal.SIGKILL:
            first, code = first + 1, 0
            self.counts["kills"] += 1
            if self.in_child(self.act) == 0:
                self.check()
            else:
                self.counts["failed starts"] += 1
                self.again()
        if time.monotonic() >= end:
            print(f"{self.name}: the time is over, go on with --stage {self.name} --first {first}")
        assert code == 0, f"{self.name} ended with code {code}"

    def figures(self) -> dict[str, int]:
        names = ("kills", "ended", "failed starts", "files lost", "files that differ", "files too many")
        return {f"{self.name}: {name}": self.counts[name] for name in names}


def all_stages(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Kill the stages in turn until there were enough kills or the time is over; what was found is kept on the way."""
    from tests.kill_stages import STAGES, graph, warm

    (folder / "warm").mkdir()
    warm(folder / "warm", graph)
    rng, end = random.Random(given.seed), time.monotonic() + 60 * given.minutes
    stages = [Stage(name, folder) for name in given.stage or STAGES]
    found: dict[str, Any] = {"seed": given.seed}
    for stage in stages if given.points else ():
        stage.killed_everywhere(given.first, end)
        found |= stage.figures()
        keep("kills", found)
    while not given.points and time.monotonic() < end and sum(stage.counts["kills"] for stage in stages) < given.kills:
        rng.choice(stages).killed_at_random(rng)
    for stage in stages if not given.points else ():
        if stage.counts["kills"]:  # what was killed last is ended too
            stage.done(stage.act)
            stage.check()
        found |= stage.figures()
    found["kills"] = sum(stage.counts["kills"] for stage in stages)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench kills")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", action="store_true")
    parser.add_argument("--first", type=int, default=1, help="with --points: the number of the first one")
    parser.add_argument("--stage", action="append", help="of this stage alone; may be given more than once")
    given = parser.parse_args([word for word in sys.argv[1:] if word != "kills"] if "kills" in sys.argv else [])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loom-bench-") as folder:
        found = all_stages(Path(folder), given)
    if given.points or given.minutes < 1e9:
        report("kills", found)
        assert not sum(count for name, count in found.items() if name.endswith(("lost", "differ", "many", "starts")))
        return
    with tempfile.TemporaryDirectory(prefix="loom-bench-") as folder:
        write_pictures(Path(folder) / "images", 200, side=64)
        large = disturbed(Path(folder), KILLS, given.seed)
    report("kills", {**found, **{f"large cache: {name}": value for name, value in large.items()}, "large cache: items in flight, the aim for the most": IN_FLIGHT})  # fmt: skip
    assert not sum(count for name, count in found.items() if name.endswith(("lost", "differ", "many", "starts")))
    assert large["most items encoded again"] <= IN_FLIGHT
    assert large["bit for bit as undisturbed"] == large["caches filled"]


if __name__ == "__main__":
    main()
