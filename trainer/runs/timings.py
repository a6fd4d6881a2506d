"""What a run uses: wall-clock seconds by activity, memory, and how often it has gone through its images."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from ..data.batches import CachedBatches
from ..weights.devices import used_memory
from ..weights.streaming import device_of

EARLIER_NAMES = {"pictures": "samples", "held-out loss": "validation loss"}
"""What earlier versions called an activity in run.json."""


@dataclass(kw_only=True)
class Timings:
    """Wall-clock seconds of a run by what they went into, over all its sessions."""

    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def continued(cls, recorded: Mapping[str, float]) -> "Timings":
        """On top of what run.json has of earlier sessions."""
        made = cls()
        for what, seconds in recorded.items():
            name = EARLIER_NAMES.get(what, what)
            made.seconds[name] = made.seconds.get(name, 0.0) + seconds
        return made

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Count the block under a name; blocks do not nest."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Returns the shares of the whole time, largest first."""
        total = sum(self.seconds.values())
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {what: seconds / total for what, seconds in ordered} if total else {}

    def text(self) -> str:
        return "time: " + ", ".join(f"{what} {share:.1%}" for what, share in self.shares().items())


def at_step(batches: object, module: nn.Module, step: int) -> dict[str, float]:
    """What stands beside the losses of a step in the metrics: {"epoch": passes over the images after it, "vram_gb" or "ram_gb": see
    `used_memory`}. Batches without an order have no epochs.
    """
    plan = batches.plan if isinstance(batches, CachedBatches) else None
    epochs = {"epoch": round(plan.epochs_in(step * plan.per_step), 3)} if plan else {}
    return {**epochs, **used_memory(device_of(module))}
