"""Whatever ends ComfyUI's process lets its runs save first: Ctrl-C, SIGTERM, a closed terminal, a restart in place.

A step takes seconds, a checkpoint much less, so that it is worth waiting for. ComfyUI is not changed: handlers are installed only where a
signal would end the process at once, and without an active run everything ends as it does without this pack.
"""

import concurrent.futures.thread  # noqa: F401 - it registers its own end, which must come after ours
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

logger = logging.getLogger("lora_loom")

WAIT_S = 300.0
"""A run whose step takes longer than this is left as it is; its last checkpoint stays."""


class Stoppable(Protocol):
    """What is used of a job."""

    name: str
    done: threading.Event

    def stop(self) -> None:
        """Save after the step in flight, and end."""
        ...


class Endings:
    """Stops the active runs before the process ends. `active` gives those of this moment."""

    def __init__(self) -> None:
        self.active: Callable[[], Sequence[Stoppable]] = tuple
        self._is_installed = False

    def save_all(self) -> bool:
        """Stop every active run and wait until it has saved; returns whether there were any. Ctrl-C once more is waited out too, a
        third one is not."""
        jobs, interrupts, end = list(self.active()), 0, time.monotonic() + WAIT_S
        if not jobs:
            return False
        names = ", ".join(job.name for job in jobs)
        logger.warning("LoRA Loom: saving %s before ComfyUI ends; press Ctrl-C twice to quit without saving", names)
        while True:
            try:
                for job in jobs:
                    job.stop()
                for job in jobs:
                    job.done.wait(max(end - time.monotonic(), 0))
                return True
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    raise

    def install(self) -> None:
        """Once a process, in its main thread."""
        if self._is_installed or threading.current_thread() is not threading.main_thread():
            return
        self._is_installed = True
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._on_signal)
        # Before the interpreter stops its thread pools, which a step may need; `atexit` comes after that.
        at_shutdown: Callable[[Callable[[], Any]], None] | None = getattr(threading, "_register_atexit", None)
        if at_shutdown is not None:
            at_shutdown(self.save_all)
        sys.addaudithook(self._on_event)

    def _on_signal(self, number: int, frame: object) -> None:
        """The server goes on serving while the runs save; then the signal does what it does."""
        signal.signal(number, signal.SIG_DFL)

        def end() -> None:
            with suppress(Exception):  # whatever a job does, the process was told to end
                self.save_all()
            os.kill(os.getpid(), number)

        if self.active():
            threading.Thread(target=end, name="lora-loom-ending", daemon=True).start()
        else:
            os.kill(os.getpid(), number)

    def _on_event(self, event: str, arguments: object) -> None:
        """ComfyUI-Manager restarts by putting a new program in place of this one."""
        if event == "os.exec":
            self.save_all()


ENDINGS = Endings()
