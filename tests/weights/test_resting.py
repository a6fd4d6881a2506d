"""A streamed base that gives its device memory back in the middle of training, and takes it again: counted, and bit-equal."""

import gc

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.weights.streaming import StreamPlan, StreamSettings, needed, stream_base

from .test_streaming import Poisoning

CPU = torch.device("cpu")
WIDTH, BLOCKS = 32, 6
LAYER = WIDTH * WIDTH * 4
STEPS = 6


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def base(resident):
    """Weights in bfloat16 that are float32 on their device, so that what lies there are copies. `resident` blocks stay."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network().to(torch.bfloat16).requires_grad_(False).eval()
    block = 2 * LAYER
    fixed = BLOCKS * 2 * WIDTH * 4
    streamed = tuple(range(BLOCKS - resident))
    budget = needed([block] * BLOCKS, fixed, StreamPlan(streamed, 2 if streamed else 0))
    stream = stream_base(
        network,
        StreamSettings(budget=budget),
        CPU,
        torch.float32,
        torch.float32,
        copier=lambda device, size: Poisoning(),
        keep_homes=True,
    )
    assert (len(stream.blocks), stream.arena.live) == (len(streamed), budget)
    return network, stream


def train(network, between=lambda step: None):
    """Weights of a LoRA after a few steps of two micro-batches."""
    paths = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    adapter = inject(network, paths, NetworkConfig(rank=2), seed=0, compute_dtype=torch.float32)
    weights = adapter.parameters()
    for step in range(STEPS):
        for micro in range(2):
            x = torch.linspace(-1, 1 + step + micro, WIDTH).repeat(3, 1)
            (network(x) - 1).square().mean().backward()
            between(step)
        with torch.no_grad():
            for weight in weights.values():
                weight.sub_(0.1 * weight.grad)
                weight.grad = None
    return {name: weight.detach().clone() for name, weight in weights.items()}


def copies():
    """Bytes of all float32 storages that are as large as a layer or larger: what would lie on a device."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.dtype in (torch.float32, torch.uint8):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(size for size in found.values() if size >= LAYER)


@pytest.mark.parametrize("resident", [0, 2, BLOCKS])
def test_a_run_that_gives_back_between_its_passes_trains_the_same_lora(resident):
    undisturbed = train(base(resident)[0])
    network, stream = base(resident)
    held, before, seen = stream.held, copies(), []

    def between(step):
        if step in (1, 2, 4):
            seen.append((stream.rest(), stream.held, stream.arena.live, before - copies()))
            stream.wake()
            assert stream.held == held

    disturbed = train(network, between)
    assert held == stream.arena.live - stream.fixed > 0
    assert seen == [(held, 0, stream.fixed, held)] * 6
    assert undisturbed.keys() == disturbed.keys()
    assert all(torch.equal(undisturbed[name], disturbed[name]) for name in undisturbed)
    assert stream.arena.peak <= stream.arena.limit


def test_at_rest_nothing_computes_and_resting_or_waking_twice_changes_nothing():
    network, stream = base(2)
    held = stream.held
    assert (stream.rest(), stream.rest()) == (held, 0)
    with pytest.raises(AssertionError, match="were given back"):
        network(torch.zeros(1, WIDTH))
    stream.wake()
    stream.wake()
    assert (stream.held, stream.arena.live) == (held, held + stream.fixed)


@pytest.mark.parametrize("missing", [1, 2 * LAYER, 4 * LAYER + 1])
def test_where_there_is_no_room_nothing_is_held_and_later_all_is(missing):
    """Room for the ring but not for the blocks that stay, or for a part of them."""
    network, stream = base(2)
    whole = network(torch.ones(1, WIDTH))
    held, limit = stream.held, stream.arena.limit
    stream.rest()
    stream.arena.limit = limit - missing
    with pytest.raises(torch.cuda.OutOfMemoryError):
        stream.wake()
    assert (stream.held, stream.arena.live) == (0, stream.fixed)
    stream.arena.limit = limit
    stream.wake()
    assert stream.held == held
    assert torch.equal(network(torch.ones(1, WIDTH)), whole)


def test_a_copy_that_fails_on_the_device_itself_is_not_counted(monkeypatch):
    _, stream = base(2)
    stream.rest()
    place, calls = stream.copies.place, []

    def failing(layer):
        calls.append(layer)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("tried to allocate 20 GiB")
        place(layer)

    stream.copies.place = failing
    with pytest.raises(torch.cuda.OutOfMemoryError):
        stream.wake()
    assert (stream.held, stream.arena.live) == (0, stream.fixed)


def test_without_homes_the_ring_alone_is_given_back():
    with torch.random.fork_rng():
        network = Network().to(torch.bfloat16)
    budget = needed([2 * LAYER] * BLOCKS, BLOCKS * 2 * WIDTH * 4, StreamPlan(tuple(range(4)), 2))
    stream = stream_base(network, StreamSettings(budget=budget), CPU, torch.float32, torch.float32)
    assert stream.rest() == stream.ring.slots * stream.ring.size == 4 * LAYER
    assert stream.arena.live == budget - 4 * LAYER
