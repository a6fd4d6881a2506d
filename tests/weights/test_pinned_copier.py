"""The copies of a streamed base to a GPU, on a device whose streams run late: never a wrong number, and never more pinned than two pieces."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_loom.trainer.weights import pinned_copier
from lora_loom.trainer.weights.arena import Arena
from lora_loom.trainer.weights.pinned_copier import DEPTH, PinnedCopier
from lora_loom.trainer.weights.ring import Ring, make_block
from tests.weights.late_device import LateDevice

CPU = torch.device("cpu")
PIECE = 128


def homes_of(number):
    """Several tensors of several layouts, larger and smaller than a piece."""
    source = torch.Generator().manual_seed(number)
    plain = torch.randn(7, 11, generator=source)
    turned = torch.randn(16, 5, generator=source).t()
    gaps = torch.randn(6, 8, generator=source)[:, ::2]
    codes = torch.randint(0, 255, (33,), generator=source, dtype=torch.uint8)
    half = torch.randn(3, 3, generator=source)
    return [plain, turned, gaps, codes, half]


DTYPES = [torch.float32, torch.float32, torch.float32, torch.uint8, torch.bfloat16]


def blocks(count):
    made = [homes_of(number) for number in range(count)]
    return [make_block(str(n), lambda n=n: made[n], DTYPES, torch.device("meta")) for n in range(count)], made


class Reader:
    """Computes with blocks: what a kernel reads when the device comes to it is compared with the homes."""

    def __init__(self, device, ring, blocks, homes):
        self.device, self.ring, self.blocks, self.homes, self.wrong, self.read = device, ring, blocks, homes, [], 0

    def visit(self, number):
        views = self.ring.get(self.blocks[number])

        def kernel():
            self.read += 1
            for view, home, dtype in zip(views, self.homes[number], DTYPES, strict=True):
                if not torch.equal(view, home.to(dtype)):
                    self.wrong.append(number)

        self.device.compute.push("work", kernel)


def reader(choose, slots, count=5):
    patch = pytest.MonkeyPatch()
    patch.setattr(pinned_copier, "PIECE", PIECE)
    patch.setattr(pinned_copier, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    device = LateDevice(choose).install(patch, pinned_copier)
    made, homes = blocks(count)
    copier = PinnedCopier(CPU, max(block.size for block in made))
    return patch, Reader(device, Ring(Arena(CPU), copier, made, slots), made, homes)


LATE = {"never before it must": lambda: 0, "at once": lambda: 1000}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_forward_and_backward_read_what_they_ask_for(late, slots):
    patch, reading = reader(LATE[late], slots)
    with patch.context():
        for _ in range(3):
            for number in [*range(5), *reversed(range(5))]:
                reading.visit(number)
        reading.device.finish()
        assert reading.wrong == []
        assert reading.read == 30
        staging = reading.ring.copier._staging
        assert [one.buffer.numel() for one in staging] == [PIECE] * DEPTH
        reading.ring.close()
        assert reading.ring.copier._threads._shutdown
        assert not reading.ring.copier._staging
    patch.undo()


@settings(max_examples=30)
@given(
    visits=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    slots=st.integers(1, 3),
    seed=st.integers(0, 2**20),
    rests=st.sets(st.integers(0, 39)),
)
def test_any_order_on_a_device_that_runs_at_any_time(visits, slots, seed, rests):
    """Also where the buffers are given back and taken again between passes."""
    source = random.Random(seed)
    patch, reading = reader(lambda: source.choice([0, 0, 0, 1, 2, 5]), slots)
    try:
        for place, number in enumerate(visits):
            reading.visit(number)
            if place in rests:
                reading.device.finish()
                reading.ring.rest()
                assert reading.ring.held == reading.ring.arena.live == 0
                reading.ring.wake()
        reading.device.finish()
        reading.ring.close()
        assert reading.wrong == []
        assert reading.read == len(visits)
    finally:
        patch.undo()


def test_what_fails_in_the_thread_is_raised_where_it_is_needed_and_the_buffers_go_all_the_same():
    patch, reading = reader(lambda: 0, 2)
    try:
        for number in (0, 1, 2, 3):
            reading.visit(number)
        for number in (3, 2, 1):
            reading.visit(number)
        reading.homes[0][1] = torch.empty(5, 16, device="meta")  # the last that is copied, when pieces are on their way
        with pytest.raises(NotImplementedError):
            reading.visit(0)
        pending = [stream.queue for stream in reading.device.streams if stream is not reading.device.compute]
        assert not any(any(kind == "work" for kind, _ in queue) for queue in pending), "a copy is still on its way"
        reading.homes[4][0] = torch.randn(3, 3)
        with pytest.raises(AssertionError, match="has become one of"):
            reading.visit(4)
        reading.ring.close()
        assert reading.ring.arena.live == 0
    finally:
        patch.undo()


def test_memory_that_cannot_be_pinned_is_plain_memory(monkeypatch):
    plain = torch.empty

    def empty(*args, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return plain(*args, **options)

    monkeypatch.setattr(torch, "empty", empty)
    assert pinned_copier._pinned(64).numel() == 64
