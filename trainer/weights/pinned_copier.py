"""Copies to a CUDA device while it computes: through pinned buffers, on a stream of their own, started by a thread.

Homes lie in pageable memory or in a mapped file, and are never pinned themselves: two pinned buffers are all that is, and a block passes
through them in pieces. The thread fills one (torch lets other threads run meanwhile) while the other is on its way.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .ring import Block, Room

DEPTH = 2
PIECE = 64 << 20
"""Bytes of a pinned buffer. A power of two, to which torch would round it up; a multiple of any number's size."""


@dataclass(eq=False)
class _Staging:
    buffer: Tensor
    sent: torch.cuda.Event


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


class PinnedCopier:
    """The ring's copier for CUDA."""

    def __init__(self, device: torch.device, size: int) -> None:
        """`size` is that of the largest block, in bytes."""
        self._device = device
        self._piece = min(PIECE, size)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._staging = [_Staging(_pinned(self._piece), _event()) for _ in range(DEPTH)]
        self._pending: dict[int, Future[torch.cuda.Event]] = {}
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="lora-loom-copies")

    def start(self, block: Block, buffer: Tensor) -> None:
        """An event marks what still reads the buffer: the copy waits for that on the device, not here."""
        last_use = _event()
        last_use.record(torch.cuda.current_stream(self._device))
        self._pending[buffer.data_ptr()] = self._threads.submit(self._copy, block, buffer, last_use)

    def finish(self, buffer: Tensor) -> None:
        """The current stream waits for the copy. What failed in the thread is raised here."""
        copied = self._pending.pop(buffer.data_ptr()).result()
        torch.cuda.current_stream(self._device).wait_event(copied)

    def close(self) -> None:
        """End the thread and let the pinned buffers go; nothing may be started any more."""
        self._threads.shutdown()
        self._pending.clear()
        self._staging.clear()

    @torch.no_grad()
    def _copy(self, block: Block, buffer: Tensor, last_use: torch.cuda.Event) -> torch.cuda.Event:
        homes = list(zip(block.homes(), block.rooms, strict=True))
        kept = [(_in_order(home, room), room) for home, room in homes if home.device.type == "cpu"]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(last_use)
            try:
                for first in range(0, block.size, self._piece):
                    self._send(kept, buffer, first, min(first + self._piece, block.size))
                for home, room in homes:
                    if home.device.type != "cpu":  # a host has part of the model on the device already
                        room.view(buffer).copy_(home)
            except BaseException:
                self._stream.synchronize()  # whoever is told of it may free the buffer at once
                raise
            copied = _event()
            copied.record(self._stream)
        return copied

    def _send(self, kept: Sequence[tuple[Tensor, Room]], buffer: Tensor, first: int, last: int) -> None:
        """The bytes from `first` to `last` of a block, through the pinned buffer that was sent longest ago."""
        staging = self._staging.pop(0)
        self._staging.append(staging)
        staging.sent.synchronize()
        for numbers, room in kept:
            _fill(staging.buffer, numbers, room, first, last)
        _launch(buffer[first:last], staging.buffer[: last - first])
        staging.sent.record(self._stream)


def _pinned(size: int) -> Tensor:
    """(size,) uint8. Where a system lets no memory be pinned it is a plain one: copies are right, and wait."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)


def _launch(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)


def _in_order(home: Tensor, room: Room) -> Tensor:
    """The numbers of a tensor as they follow each other in its room; nothing is copied, unless it has gaps."""
    assert tuple(home.shape) == room.shape, f"a weight of {room.shape} has become one of {tuple(home.shape)}"
    if tuple(home.stride()) == room.stride and not home.is_contiguous():
        return home.as_strided((home.numel(),), (1,))
    return home.reshape(-1)


def _fill(staging: Tensor, numbers: Tensor, room: Room, first: int, last: int) -> None:
    """Those bytes from `first` to `last` of a block that belong to one of its tensors, in the dtype of its room."""
    width = room.dtype.itemsize
    begin, end = max(first, room.offset), min(last, room.offset + numbers.numel() * width)
    if begin < end:
        mine = numbers[(begin - room.offset) // width : (end - room.offset) // width]
        staging[begin - first : end - first].view(room.dtype).copy_(mine)
