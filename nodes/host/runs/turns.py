"""When a run lets ComfyUI have the machine, and what it does before it goes on."""

import time
from collections.abc import Callable
from typing import Protocol

from .memory.giving import DeviceMemory

POLL_S = 0.05
ENDLESS_S = 60.0
"""A run that has held for so long takes a turn as the next prompt begins: prompts that follow each other without a gap would
starve it. One prompt that takes long is not disturbed."""
TURN_SHARE = 0.1
"""A turn lasts at least as long as a step, and this share of the time held."""
UNLOAD_S = 30.0
"""How long ComfyUI, which was asked to unload its models, is waited for."""


class Host(Protocol):
    """What is used of the registry of runs."""

    free_memory: Callable[[], None]
    prompts: Callable[[], int]
    unload: Callable[[], None]

    def must_yield(self) -> bool:
        """Whether a prompt runs that waits for no run."""


class Turns:
    """Those of one run. `yield_max_s`: it holds no longer than that at a time; 0 for no limit."""

    def __init__(self, host: Host, memory: DeviceMemory, yield_max_s: float) -> None:
        self._host, self._memory, self._yield_max_s = host, memory, yield_max_s
        self._end = 0.0
        """Until then (`time.monotonic`) it trains at the same time as the host generates."""

    def serve(self) -> None:
        """Give back the device memory that was asked for; a turn beside a prompt has ended then."""
        if self._memory.serve():
            self._end = 0.0
            self._host.free_memory()

    def must_hold(self) -> bool:
        return self._host.must_yield() and time.monotonic() >= self._end

    def hold(self, is_over: Callable[[], bool], seconds: float | None) -> None:
        """Return when the host is idle, a turn begins or `is_over`. `seconds`: what a step takes."""
        self._host.free_memory()
        started, prompts = time.monotonic(), self._host.prompts()
        while self._host.must_yield() and not is_over():
            held, following = time.monotonic() - started, self._host.prompts()
            is_endless = held >= ENDLESS_S and following != prompts
            if is_endless or (self._yield_max_s and held >= self._yield_max_s):
                self._end = time.monotonic() + max(seconds or 0.0, TURN_SHARE * held)
                return
            prompts = following
            time.sleep(POLL_S)
            self.serve()

    def regain(self, is_stopped: Callable[[], bool]) -> None:
        """Have on the device again what was given back: where there is room, else when the host is idle and has unloaded its models.

        Raises torch.cuda.OutOfMemoryError where there is no room even then.
        """
        asked: float | None = None
        while not self._memory.take() and not is_stopped():
            if self._host.must_yield():
                asked = None
            elif asked is None:
                self._host.unload()
                asked = time.monotonic()
            elif time.monotonic() - asked > UNLOAD_S:
                self._memory.take(is_last_try=True)
            time.sleep(POLL_S)
            self.serve()
