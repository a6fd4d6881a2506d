"""A few buffers on the device, through which the blocks of a frozen base pass in the order they are needed.

A block is brought when one of its weights is asked for, in the place of the one that was used longest ago. The next block is
copied while this one computes: which one follows is remembered from the last time that these two blocks came one after the
other, in forward, recomputation and backward alike. A changed order costs a wait, never a wrong number.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .arena import Arena

ALIGNMENT = 64
"""Bytes; what torch aligns its own CPU tensors to. Products with a single row depend on it in their last bit."""


@dataclass(frozen=True)
class Room:
    """Where a tensor lies in a buffer, and how."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        size = _count(self.shape) * self.dtype.itemsize
        flat = buffer[self.offset : self.offset + size].view(self.dtype)
        return flat.as_strided(self.shape, self.stride, flat.storage_offset())


@dataclass(eq=False)
class Block:
    """Weights that are needed together, and where they stay: `homes` are never moved or changed."""

    name: str
    homes: Callable[[], Sequence[Tensor]]
    """The weights as plain tensors, in a fixed order. Asked at every copy, as a host may exchange what it holds."""
    rooms: tuple[Room, ...]
    size: int
    """Bytes in a buffer."""


def make_block(
    name: str, homes: Callable[[], Sequence[Tensor]], dtypes: Sequence[torch.dtype], device: torch.device
) -> Block:
    """A block whose tensors lie in a buffer with these dtypes, aligned as they would be on the device as a whole base."""
    rooms, offset = [], 0
    for tensor, dtype in zip(homes(), dtypes, strict=True):
        offset = -(-offset // ALIGNMENT) * ALIGNMENT + _misalignment(tensor, dtype, device)
        rooms.append(Room(offset, tuple(tensor.shape), _dense_stride(tensor), dtype))
        offset += tensor.numel() * dtype.itemsize
    return Block(name=name, homes=homes, rooms=tuple(rooms), size=offset)


def _misalignment(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes by which a weight that is used where it lies, in a mapped file, misses the alignment."""
    stays = tensor.device.type == device.type == "cpu" and tensor.dtype == dtype
    missed = tensor.data_ptr() % ALIGNMENT if stays else 0
    return missed if missed % dtype.itemsize == 0 else 0


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own order in memory, where it has no gaps: kernels may compute by it."""
    last = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() and last + 1 == tensor.numel() and not tensor.is_contiguous():
        return tuple(tensor.stride())
    return tuple(torch.empty(tensor.shape, device="meta").stride())


def _count(shape: Sequence[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


class Copier(Protocol):
    """Brings blocks into buffers."""

    def start(self, block: Block, buffer: Tensor) -> None:
        """Begin to copy. What was in the buffer is used no more by anything that has been launched after this call."""
        ...

    def finish(self, buffer: Tensor) -> None:
        """Return when whatever is launched now finds the buffer filled. Raises what the copy failed with."""
        ...

    def close(self) -> None:
        """Hold nothing any more."""
        ...


@dataclass
class DirectCopier:
    """Copies at once: for a base that computes on the CPU."""

    def start(self, block: Block, buffer: Tensor) -> None:
        with torch.no_grad():
            for home, room in zip(block.homes(), block.rooms, strict=True):
                room.view(buffer).copy_(home)

    def finish(self, buffer: Tensor) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(eq=False)
class _Slot:
    buffer: Tensor
    block: Block | None = None
    views: list[Tensor] = field(default_factory=list)
    is_ready: bool = False


class Ring:
    """A ring of `slots` buffers, each as large as the largest block."""

    def __init__(self, arena: Arena, copier: Copier, blocks: Sequence[Block], slots: int) -> None:
        self.arena, self.copier, self.slots = arena, copier, slots
        self.size = max(block.size for block in blocks)
        self.moves = 0
        """Blocks that were copied."""
        self.waits = 0
        """Blocks that were asked for before their copy had been started."""
        self._free = [_Slot(arena.buffer(self.size)) for _ in range(slots)]
        self._used: OrderedDict[Block, _Slot] = OrderedDict()
        """The block that was used last comes last."""
        self._previous: Block | None = None
        self._current: Block | None = None
        self._follows: dict[tuple[Block | None, Block], Block] = {}
        self._is_open = True

    def get(self, block: Block) -> list[Tensor]:
        """The block's tensors on the device. They are right until another block is asked for twice."""
        if block is not self._current:
            self._visit(block)
        return self._used[block].views

    def _visit(self, block: Block) -> None:
        if self._current is not None:
            self._follows[self._previous, self._current] = block
        self._previous, self._current = self._current, block
        if block not in self._used:
            self.waits += 1
            self._fetch(block)
        slot = self._used[block]
        self._used.move_to_end(block)
        if not slot.is_ready:
            self.copier.finish(slot.buffer)
            slot.is_ready = True
        ahead = self._follows.get((self._previous, block))
        if ahead is not None and ahead not in self._used and len(self._used) + len(self._free) > 1:
            self._fetch(ahead)

    def _fetch(self, block: Block) -> None:
        """Begin to copy a block into the buffer that was used longest ago; never that of the current block."""
        assert self._is_open, "the ring of a streamed base is closed"
        assert self._free or self._used, "the buffers of a streamed base were given back"
        if self._free:
            slot = self._free.pop()
        else:
            victim = next(held for held in self._used if held is not self._current)
            slot = self._used.pop(victim)
        self.copier.start(block, slot.buffer)
        slot.block, slot.is_ready = block, False
        slot.views = [room.view(slot.buffer) for room in block.rooms]
        self._used[block] = slot
        self.moves += 1

    @property
    def held(self) -> int:
        """Bytes of the buffers that are on the device now."""
        return (len(self._free) + len(self._used)) * self.size

    def rest(self) -> None:
        """Give the buffers back until `wake`. Only while nothing that has been launched uses them, and no graph of autograd is alive."""
        for slot in self._used.values():
            if not slot.is_ready:
                with suppress(Exception):  # nobody will read what it should have brought
                    self.copier.finish(slot.buffer)
        held = self.held
        self._free, self._previous, self._current = [], None, None
        self._used.clear()
        self.arena.release(held)

    def wake(self) -> None:
        """Have buffers again. Raises torch.cuda.OutOfMemoryError, and then holds none."""
        try:
            while len(self._free) + len(self._used) < self.slots:
                self._free.append(_Slot(self.arena.buffer(self.size)))
        except torch.cuda.OutOfMemoryError:
            self.rest()
            raise

    def close(self) -> None:
        """Give the buffers back. Nothing can be asked for afterwards."""
        if self._is_open:
            self._is_open = False
            self.rest()
            self.copier.close()
