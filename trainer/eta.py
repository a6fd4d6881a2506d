"""How long something will still take."""

import time
from collections.abc import Callable


class Eta:
    """Seconds left of what is counted, by its pace since it was first heard of; each name is counted apart."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int, int]] = {}

    def left(self, name: str, done: int, total: int) -> float | None:
        """None while nothing is known: at the first word, and when the counting begins anew."""
        now = self._clock()
        since, start, last = self._first.get(name, (now, done, done))
        if done < last:
            since, start = now, done
        self._first[name] = (since, start, done)
        return (now - since) / (done - start) * (total - done) if done > start else None


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
