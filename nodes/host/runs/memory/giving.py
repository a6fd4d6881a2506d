"""Device memory that a run gives back while ComfyUI needs it, and takes again afterwards, with the same bits.

ComfyUI asks in its own thread; the run answers in its own, between two passes. Whoever asks waits for that, but not for long: a run that
comes later gives all the same, and ComfyUI does with less meanwhile.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .....trainer.weights.devices import give_to_driver
from .....trainer.weights.streaming import BaseStream, stream_of

PATIENCE_S = 10.0
"""How long ComfyUI's thread waits for the pass that is in flight."""


class DeviceMemory:
    """What the base of one run holds on the device and can give back: a ring of buffers, and blocks that were copied there.

    `wake_run` is called when it is asked, so that a paused run answers at once.
    """

    def __init__(
        self, *, log: Callable[[str], None] = lambda text: None, wake_run: Callable[[], None] = lambda: None
    ) -> None:
        self._log, self._wake_run = log, wake_run
        self._streams: Sequence[BaseStream] = ()
        self._changed = threading.Condition()
        self._thread: int | None = None
        """The run's thread while it trains."""
        self._given = self._ever_given = 0
        self.is_asked = self.is_over = False
        self.room: Callable[[], int | None] = lambda: None
        """Bytes that are free on the device; None: as many as there are."""
        self.activations = 0
        """Bytes that a step takes besides."""
        self.on_taken: Callable[[], None] = lambda: None
        """Called when the run holds it again."""
        self.on_end: Callable[[], None] = lambda: None

    def watch(self, *networks: nn.Module) -> bool:
        """The networks whose bases it is about, in place of those before; returns whether they hold anything to give back."""
        with self._changed:
            self._streams, self._given = [stream for one in networks if (stream := stream_of(one)) is not None], 0
        return self.held > 0

    @property
    def held(self) -> int:
        """Bytes that can be given back now."""
        return sum(stream.held for stream in self._streams)

    def ask(self) -> int:
        """Have the memory given back; returns the bytes that were, 0 where the run did not come to it in time. Any thread.

        Who asks again before the run has answered does not wait again.
        """
        with self._changed:
            if self._thread == threading.get_ident() or self.is_asked:
                return 0
            before = self._ever_given
            if self._thread is None:
                self._give()
                return self._ever_given - before
            self.is_asked = True
        self._wake_run()
        with self._changed:
            self._changed.wait_for(lambda: not self.is_asked, PATIENCE_S)
            return self._ever_given - before

    def begin(self) -> None:
        """The thread that calls this uses the memory from now on, and answers in `serve`."""
        with self._changed:
            self._thread = threading.get_ident()

    def end(self) -> None:
        """The run has ended: nobody uses the memory any more, and it belongs to whoever holds the networks."""
        with self._changed:
            self._thread, self._streams, self.is_over = None, (), True
            self._answer()
        self.on_end()

    def serve(self) -> bool:
        """Give back what was asked for; returns whether it was. The run's thread, between two passes."""
        if not self.is_asked:
            return False
        with self._changed:
            return self._answer()

    def _answer(self) -> bool:
        was_asked, self.is_asked = self.is_asked, False
        if was_asked:
            self._give()
            self._changed.notify_all()
        return was_asked

    def _give(self) -> None:
        if freed := sum(stream.rest() for stream in self._streams):
            for stream in self._streams:
                give_to_driver(stream.device)
            self._given += freed
            self._ever_given += freed
            self._log(
                f"ComfyUI needs memory: {freed:,} bytes of the base on the device are given back until the queue is idle"
            )

    def take(self, *, is_last_try: bool = False) -> bool:
        """Hold again what was given; False where there is no room for it now. The run's thread.

        Raises torch.cuda.OutOfMemoryError where there is none and it is the last try.
        """
        with self._changed:
            if not self._given:
                return True
            room = self.room()
            if not is_last_try and room is not None and room < self._given + self.activations:
                return False
            try:
                for stream in self._streams:
                    stream.wake()
            except torch.cuda.OutOfMemoryError:
                for stream in self._streams:
                    stream.rest()
                if is_last_try:
                    raise
                return False
            self._log(f"the base is on the device again: {self._given:,} bytes")
            self._given = 0
        self.on_taken()
        return True


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a CUDA device has left, with those that torch keeps for later; None for any other device."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
