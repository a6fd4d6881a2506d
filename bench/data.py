"""Data sets and caches at 10,000 images of 512 px: looking, checking, editing, reading, encoding. Every figure has an aim.

JPEGs that differ, of photograph-like entropy (about 60 kB). `python -m bench data`; a smaller set for trying it:
`LOOM_BENCH_IMAGES=500 python -m bench data`. What kills do is in `bench/kills.py`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_loom.trainer.config.run import DataConfig, DatasetConfig
from lora_loom.trainer.data.batches import CachedBatches
from lora_loom.trainer.data.cache.fill import fill, load_view
from lora_loom.trainer.data.cache.keys import Work, find_work
from lora_loom.trainer.data.cache.store import Cache, text_key
from lora_loom.trainer.data.images.index import FileIndex
from lora_loom.trainer.data.order import make_plan
from lora_loom.trainer.data.sets.dataset import Dataset, build_dataset
from lora_loom.trainer.families.common.family import Encoders
from lora_loom.trainer.types import EncoderIdentity

from .common import interleaved, ratio, report

COUNT = int(os.environ.get("LOOM_BENCH_IMAGES", "10000"))
SIDE = 512
IDENTITY = EncoderIdentity(vae="bench", text="bench")


def silent(*progress: Any) -> None:
    pass


def write_pictures(folder: Path, count: int, side: int = SIDE, kind: str = "jpg") -> None:
    """Smooth colours with grain; each differs from every other in a patch of its own."""
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(16):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        grain = rng.integers(-6, 7, (side, side, 1))
        bases.append(Image.fromarray((np.asarray(smooth, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8)))
    folder.mkdir()
    for number in range(count):
        picture = bases[number % len(bases)].copy()
        patch = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        picture.paste(patch.resize((side // 3, side // 3), Image.Resampling.BICUBIC), (side // 3, side // 3))
        picture.save(folder / f"{number:05d}.{kind}", quality=90)
        (folder / f"{number:05d}.txt").write_text(f"picture number {number}")


class QuickEncoders:
    """Latents and texts of the usual sizes for next to nothing: what is measured is everything else."""

    factor = 8

    def encode(self, inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            return torch.nn.functional.avg_pool2d(inputs, 8)[:, [0, 1, 2, 0]]
        return [{"text": torch.full((77, 768), float(len(text)) + hash(text) % 1000)} for text in inputs]


def look(root: Path) -> Dataset:
    return build_dataset(
        [DatasetConfig(folder=str(root / "images"), captions="sidecar")],
        DataConfig(resolution=SIDE),
        64,
        0,
        FileIndex(root / "files.json"),
        silent,
    )


def work_left(root: Path) -> tuple[Cache, Dataset, Work]:
    dataset, cache = look(root), Cache(root / "cache")
    return cache, dataset, find_work(cache, dataset, IDENTITY)


def indexing_rate(root: Path) -> tuple[float, float]:
    """Images that were never seen before per second, and per second that a core worked on them."""
    (root / "files.json").unlink(missing_ok=True)
    images = sorted((root / "images").glob("*.jpg"))
    started, worked = time.perf_counter(), time.process_time()
    FileIndex(root / "files.json").look_up(images, silent)
    return len(images) / (time.perf_counter() - started), len(images) / (time.process_time() - worked)


WARM = """
import json, sys, time
from pathlib import Path
from bench.data import status_mb, work_left
imported, worked = time.perf_counter(), time.process_time()
work = work_left(Path(sys.argv[1]))[2]
done = time.perf_counter()
print(json.dumps({"seconds": done - imported, "worked": time.process_time() - worked, "left": work.count,
                  "mb": status_mb("VmHWM")}))
"""


def warm_check(root: Path) -> dict[str, float]:
    """In a process of its own: is everything in the cache, and how much memory does it take to know."""
    done = subprocess.run([sys.executable, "-c", WARM, str(root)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


READ = """
import json, sys
from pathlib import Path
from bench.data import batches_of, status_mb, work_left
cache, dataset, work = work_left(Path(sys.argv[1]))
batches = batches_of(cache, dataset, 4)
before, after = status_mb("RssAnon"), []
for position in range(batches.plan.per_epoch):
    batches.at(position)
    if position % 10 == 9:
        after.append(status_mb("RssAnon"))
print(json.dumps({"growth": max(after) - before, "late": after[-1] - after[len(after) // 4]}))
"""


def status_mb(name: str) -> float:
    """VmHWM: the most memory at a time. RssAnon: what is this process's own; maps of files can be taken back at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return float("nan")


def batches_of(cache: Cache, dataset: Dataset, size: int) -> CachedBatches:
    def condition(picks: Sequence[Any]) -> dict[str, Tensor]:
        return {"text": torch.stack([cache.get(text_key(pick.caption, IDENTITY.text))["text"] for pick in picks])}

    return CachedBatches(
        dataset.training,
        make_plan(dataset.training, size, 0),
        cache,
        IDENTITY.vae,
        normalise=lambda raw: raw,
        condition=condition,
        device=torch.device("cpu"),
    )


def reading(root: Path, size: int = 2, rounds: int = 9) -> dict[str, float]:
    """Seconds per step of the toy on cached batches, and per batch read, in turns; every batch for the first time."""
    from .loop import OneBatch, toy_steps  # of two samples of 16 x 16 latents, while 64 x 64 are read

    cache, dataset, _ = work_left(root)
    batches = batches_of(cache, dataset, size)
    steps = toy_steps(OneBatch(size, 16))
    positions = count()
    times = interleaved({"step": lambda: next(steps), "read": lambda: batches.at(next(positions))}, rounds)
    return {
        "step, s": statistics.median(times["step"]),
        "batch read, ms": 1e3 * statistics.median(times["read"]),
        "toy step / batch read (aim >= 20)": ratio(times["step"], times["read"]),
    }


def encoding(root: Path, images: int = 12, rounds: int = 5) -> float:
    """Rate of the loop / rate of the bare VAE on pixels that are in memory already."""
    from diffusers import AutoencoderKL

    from lora_loom.trainer.families.common.encoders import KlCodec

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    codec = KlCodec(vae.eval().requires_grad_(False))
    _, _, work = work_left_of(root, Cache(root / "none"))
    some = Work(views=dict(list(work.views.items())[:images]), prompts={}, reused=0)
    pixels = [load_view(view).pixels_CHW.unsqueeze(0) for view in some.views.values()]

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fill(Cache(Path(folder)), some, Encoders(QuickEncoders(), codec), 1, silent)

    def bare() -> None:
        for one in pixels:
            codec.encode(one)

    times = interleaved({"bare": bare, "loop": loop}, rounds)
    return ratio(times["bare"], times["loop"])


def work_left_of(root: Path, cache: Cache) -> tuple[Cache, Dataset, Work]:
    dataset = look(root)
    return cache, dataset, find_work(cache, dataset, IDENTITY)


def edit_one(root: Path) -> int:
    """How many items are encoded after one image was painted over."""
    path = sorted((root / "images").glob("*.jpg"))[COUNT // 2]
    picture = Image.open(path)
    picture.paste((255, 0, 0), (0, 0, 40, 40))
    picture.save(path, quality=90)
    cache, _, work = work_left(root)
    done = fill(cache, work, Encoders(QuickEncoders(), QuickEncoders()), 1, silent)
    assert not work_left(root)[2].count
    return done.encoded


class _Spoken(dict[str, Any]):
    """Tells each figure as it comes: the whole takes minutes."""

    def __setitem__(self, name: str, value: Any) -> None:
        print(f"  {name}: {value}", file=sys.stderr, flush=True)
        super().__setitem__(name, value)


def main() -> None:
    torch.set_num_threads(1)
    figures: dict[str, Any] = _Spoken(images=COUNT)
    with tempfile.TemporaryDirectory(prefix="loom-bench-") as folder:
        root = Path(folder)
        write_pictures(root / "images", COUNT)
        rates = [indexing_rate(root) for _ in range(3)]
        figures["first look, images/s, median of 3 (aim >= 400)"] = statistics.median(rate for rate, _ in rates)
        figures["first look, images per second of one core"] = statistics.median(rate for _, rate in rates)
        cache, _, work = work_left(root)
        started = time.perf_counter()
        fill(cache, work, Encoders(QuickEncoders(), QuickEncoders()), 1, silent)
        figures["filling with an encoder that costs nothing, images/s"] = COUNT / (time.perf_counter() - started)
        figures["cache, MB"] = sum(shard.bytes for shard in cache.shards.values()) / 1e6
        warm = [warm_check(root) for _ in range(5)]
        assert not any(one["left"] for one in warm)
        figures["warm check, s (aim <= 3)"] = statistics.median(one["seconds"] for one in warm)
        figures["warm check, seconds of one core"] = statistics.median(one["worked"] for one in warm)
        figures["warm check, peak RSS in MB (aim <= 300)"] = statistics.median(one["mb"] for one in warm)
        figures["encoded after an edit of 1 image (aim 1)"] = edit_one(root)
        read = reading(root)
        for name in read:
            figures[name] = read[name]
        done = subprocess.run([sys.executable, "-c", READ, str(root)], capture_output=True, text=True, check=True)
        grown = json.loads(done.stdout)
        figures["memory gained over an epoch, MB"] = grown["growth"]
        figures["of it after the first quarter, MB (aim 0)"] = grown["late"]
        figures["encode loop / bare VAE (aim >= 0.95)"] = encoding(root)
    report("data", figures)


if __name__ == "__main__":
    main()
