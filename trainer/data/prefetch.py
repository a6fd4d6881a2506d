"""Reading the next batches, and bringing them to the device, while a step computes.

What a batch holds is a function of its position, so neither how many are read in advance nor by how many threads changes
anything: a resumed run needs the step number alone.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..types import Batch


class BatchSource(Protocol):
    def size(self, position: int) -> int: ...

    def at(self, position: int) -> Batch: ...


class Prefetched:
    """Batches of a source, the following ones read in the background. A context manager: leaving it ends the threads."""

    def __init__(
        self, source: BatchSource, device: torch.device, *, ahead: int = 1, stride: int = 1, workers: int = 1
    ) -> None:
        """`stride`: after position p this process needs p + stride. `ahead` = 0 reads each batch when it is asked for."""
        self.source, self.ahead, self.stride = source, ahead, stride
        self.device = device
        self._waiting: dict[int, Future[tuple[Batch, Any]]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch reader") if ahead else None
        # Copies on a stream of their own do not queue behind the step's work.
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
        return self.source.size(position)

    def at(self, position: int) -> Batch:
        """Raises what reading this position raised, in its turn."""
        if self._pool is None:
            return self.source.at(position)
        wanted = [position + i * self.stride for i in range(self.ahead + 1)]
        for stale in self._waiting.keys() - set(wanted):
            self._waiting.pop(stale).cancel()
        for place in wanted:
            if place not in self._waiting:
                self._waiting[place] = self._pool.submit(self._read, place)
        batch, ready = self._waiting.pop(position).result()
        if ready is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ready)
            for tensor in _tensors([batch.latents_BCHW, batch.conditioning, batch.weight_B, batch.mask_B1HW]):
                if tensor.is_cuda:  # or its memory could be given away while this stream still reads it
                    tensor.record_stream(current)
        return batch

    def _read(self, position: int) -> tuple[Batch, Any]:
        if self._stream is None:
            return self.source.at(position), None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = self.source.at(position)
            return batch, self._stream.record_event()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
