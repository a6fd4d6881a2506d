"""Estimates of the remaining time of counted tasks."""

import time
from collections.abc import Callable


class Eta:
    """Remaining seconds of counted tasks, from the mean rate since each task was first reported. Tasks are distinguished by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int, int]] = {}

    def left(self, name: str, done: int, total: int) -> float | None:
        """Seconds left of the task `name`, of which `done` of `total` are finished.

        None at the task's first report, and when its count has started over.
        """
        now = self._clock()
        since, start, last = self._first.get(name, (now, done, done))
        if done < last:
            since, start = now, done
        self._first[name] = (since, start, done)
        return (now - since) / (done - start) * (total - done) if done > start else None


def duration(seconds: float) -> str:
    """A duration in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
