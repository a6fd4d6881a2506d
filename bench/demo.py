"""The demo over five seeds: what its two margins rest on. Also how long it takes, and what learning nothing gives."""

import tempfile
import time
from pathlib import Path

from lora_loom.trainer.cli.console import QuietHost
from lora_loom.trainer.demo.demo import LOSS_MARGIN, SCORE_MARGIN, Lesson, teach

from .common import report


def lesson(seed: int, learning_rate: float = 0.0) -> tuple[Lesson, float]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        return teach(Path(folder), QuietHost(), seed=seed, learning_rate=learning_rate), time.perf_counter() - started  # fmt: skip


def main(seeds: int = 5) -> None:
    lessons = [lesson(seed) for seed in range(seeds)]
    falls, rises = ([getattr(one, name) for one, _ in lessons] for name in ("loss_fall", "score_rise"))
    idle = [lesson(seed, 1e-12)[0] for seed in range(2)]
    report(
        "demo",
        {
            f"validation loss falls by (margin {LOSS_MARGIN}), least": min(falls),
            "validation loss falls by, most": max(falls),
            f"score rises by (margin {SCORE_MARGIN}), least": min(rises),
            "score rises by, most": max(rises),
            "learning rate 1e-12: loss falls by, most": max(one.loss_fall for one in idle),
            "learning rate 1e-12: score rises by, most": max(one.score_rise for one in idle),
            "seconds, longest": max(seconds for _, seconds in lessons),
        },
    )


if __name__ == "__main__":
    main()
