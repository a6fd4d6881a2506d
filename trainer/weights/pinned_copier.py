"""Copies to a CUDA device while it computes: through pinned buffers, on a stream of their own, started by a thread.

Homes lie in pageable memory or in a mapped file, and are never pinned themselves: two pinned buffers, each as large as the
largest block, are all that is. A thread fills one (torch lets other threads run meanwhile) while the other is on its way.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .ring import Block

DEPTH = 2


@dataclass(eq=False)
class _Staging:
    buffer: Tensor
    sent: torch.cuda.Event


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


class PinnedCopier:
    """The ring's copier for CUDA."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [
            _Staging(torch.empty(size, dtype=torch.uint8, pin_memory=True), _event()) for _ in range(DEPTH)
        ]
        self._pending: dict[int, Future[torch.cuda.Event]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="lora-loom-copies")

    def start(self, block: Block, buffer: Tensor) -> None:
        """An event marks what still reads the buffer: the copy waits for that on the device, not here."""
        last_use = _event()
        last_use.record(torch.cuda.current_stream(self._device))
        self._pending[buffer.data_ptr()] = self._threads.submit(self._copy, block, buffer, last_use)

    def finish(self, buffer: Tensor) -> None:
        """The current stream waits for the copy."""
        copied = self._pending.pop(buffer.data_ptr()).result()
        torch.cuda.current_stream(self._device).wait_event(copied)

    @torch.no_grad()
    def _copy(self, block: Block, buffer: Tensor, last_use: torch.cuda.Event) -> torch.cuda.Event:
        staging = self._staging.pop(0)
        self._staging.append(staging)
        staging.sent.synchronize()
        pairs = list(zip(block.homes(), block.rooms, strict=True))
        for home, room in pairs:
            if home.device.type == "cpu":
                room.view(staging.buffer).copy_(home)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(last_use)
            buffer[: block.size].copy_(staging.buffer[: block.size], non_blocking=True)
            for home, room in pairs:
                if home.device.type != "cpu":  # a host has part of the model on the device already
                    room.view(buffer).copy_(home)
            staging.sent.record(self._stream)
            copied = _event()
            copied.record(self._stream)
        return copied
