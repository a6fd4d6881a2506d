"""Prefetching: the next batches are read and copied to the device while a step computes.

The content of a batch is a function of its position, so the number of prefetched batches and of threads changes nothing in
the results.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from ..types import Batch


class BatchSource(Protocol):
    """Batches by position."""

    def size(self, position: int) -> int:
        """Number of samples at a position."""
        ...

    def at(self, position: int) -> Batch:
        """The batch at a position."""
        ...


class Prefetched:
    """The batches of a source; the following ones are read in the background. Leaving the context ends the threads."""

    def __init__(
        self, source: BatchSource, device: torch.device, *, ahead: int = 1, stride: int = 1, workers: int = 1
    ) -> None:
        """After position p this process will request p + `stride`. `ahead` is the number of batches read in advance, 0 for none."""
        self.source, self.ahead, self.stride = source, ahead, stride
        self.device = device
        self._waiting: dict[int, Future[tuple[Batch, torch.cuda.Event | None]]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch reader") if ahead else None
        # Copies on a separate stream do not wait for the step's kernels.
        self._stream = torch.cuda.Stream(device) if ahead and device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def size(self, position: int) -> int:
        """Number of samples at a position, without reading them."""
        return self.source.size(position)

    def at(self, position: int) -> Batch:
        """The batch at a position, on the device. An error of the background thread that read it is raised here."""
        if self._pool is None:
            return self.source.at(position)
        wanted = [position + i * self.stride for i in range(self.ahead + 1)]
        for stale in self._waiting.keys() - set(wanted):
            self._waiting.pop(stale).cancel()
        for upcoming in wanted:
            if upcoming not in self._waiting:
                self._waiting[upcoming] = self._pool.submit(self._read, upcoming)
        batch, ready = self._waiting.pop(position).result()
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in _tensors(batch):
                if tensor.is_cuda:  # otherwise its memory could be reused while this stream still reads it
                    tensor.record_stream(current)
        return batch

    def _read(self, position: int) -> tuple[Batch, torch.cuda.Event | None]:
        if self._stream is None:
            return self.source.at(position), None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = self.source.at(position)
            return batch, self._stream.record_event()


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
