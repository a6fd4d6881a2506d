"""A streamed base against one that lies on its device as a whole: the same numbers, and never more memory than allowed."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.training.loop import LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.training.step import LossSettings
from lora_loom.trainer.types import Batch, Geometry
from lora_loom.trainer.weights.arena import Arena
from lora_loom.trainer.weights.ring import DirectCopier
from lora_loom.trainer.weights.streaming import (
    StreamPlan,
    StreamSettings,
    choose,
    device_of,
    find_blocks,
    needed,
    stream_base,
    stream_of,
)
from tests.conftest import tiny_folder

CPU = torch.device("cpu")
STEPS = 2


class Poisoning(DirectCopier):
    """Overwrites a buffer before it is filled: whoever still used it would compute with NaN."""

    def start(self, block, buffer):
        buffer.fill_(255)
        super().start(block, buffer)


def loaded(name, stream=None, dtype=torch.float32, quantize="none", storage=None, device=CPU, matmul="off"):
    family = families.get(name)
    source = open_source(str(tiny_folder(name)))
    variant = family.detect(source.shapes) or next(iter(family.variants))
    loading = Loading(
        dtype=storage, device=device, compute_dtype=dtype, quantize=quantize, stream=stream, matmul=matmul
    )
    return family, family.load_denoiser(source, variant, loading)


class Batches:
    """Random latents and texts, a function of the position."""

    def __init__(self, family, device=CPU):
        self.family, self.encoders, self.device = family, family.tiny().encoders, device

    def size(self, position):
        return 1

    def at(self, position):
        shape = (1, self.family.latent_space.channels, 8, 8)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(position))
        geometry = Geometry(original=(64, 64), resized=(64, 64), crop_left=0, crop_top=0, target=(64, 64))
        texts = self.family.condition(self.encoders.text.encode([f"a {position}"]), [geometry], 1.0)
        return Batch(
            latents_BCHW=latents.to(self.device),
            conditioning={name: tensor.to(self.device) for name, tensor in texts.items()},
            weight_B=torch.ones(1, device=self.device),
            mask_B1HW=None,
            names=("a",),
        )


_batches = {}


def train(name, stream, *, kind="lora", checkpointing=True, targets="all", storage=None, **loading):
    """Losses, adapter and network after a few steps of two micro-batches."""
    family, denoiser = loaded(name, stream, storage=storage, **loading)
    if checkpointing:
        checkpoint_blocks(denoiser.module)
    device = loading.get("device", CPU)
    if (name, device) not in _batches:
        _batches[name, device] = Batches(family, device)
    paths = resolve_targets(denoiser.module, denoiser.target_presets, targets, "")
    compute = loading.get("dtype", torch.float32)
    adapter = inject(denoiser.module, paths, NetworkConfig(kind=kind, rank=2), seed=0, compute_dtype=compute)
    optimizer = make_optimizer(adapter.parameters().values(), OptimizerConfig(learning_rate=1e-2))
    training = Training(adapter=adapter, optimizer=optimizer)
    loss = LossSettings(noise_levels=NoiseLevels(law=Uniform()))
    steps = fit(
        denoiser, training, _batches[name, device], LoopSettings(loss=loss, seed=0, accumulation=2), lambda _: 1e-2
    )
    losses = [next(steps).loss for _ in range(STEPS)]
    return losses, adapter.parameters(), denoiser


@functools.cache
def resident(name, kind="lora", checkpointing=True):
    """What the same training gives on a base that lies on its device, and whose network is let go."""
    losses, parameters, _ = train(name, None, kind=kind, checkpointing=checkpointing)
    return losses, parameters


def assert_equal(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    different = [name for name, value in one[1].items() if not torch.equal(value, other[1][name])]
    assert not different


def whole(name, **loading):
    """How a base is laid out that fits its budget."""
    return stream_of(loaded(name, StreamSettings(budget=10**12), **loading)[1].module)


def smallest_budget(name, slots, **loading):
    """What a ring of `slots` buffers needs where every block is streamed."""
    stream = whole(name, **loading)
    return needed(stream.sizes, stream.fixed, StreamPlan(tuple(range(len(stream.sizes))), slots))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("name", "slots"), [("sd", 1), ("sd", 2), ("sd3", 1), ("flux", 1)])
def test_a_lora_on_a_streamed_base_is_bit_equal(name, slots, kind, checkpointing):
    budget = smallest_budget(name, slots)
    streamed = train(name, StreamSettings(budget=budget), kind=kind, checkpointing=checkpointing)
    assert_equal(resident(name, kind, checkpointing), streamed)
    stream = stream_of(streamed[2].module)
    assert stream.ring.moves > 0
    assert stream.arena.peak <= budget


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_blocks_move_at_most_twice_less_what_the_ring_keeps(slots):
    """2 (N - slots) a micro-batch, in forward and backward together, and after the first step none is waited for."""
    family, denoiser = loaded("sd", None)
    module = denoiser.module
    arena_limit = smallest_budget("sd", slots)
    stream = stream_base(module, StreamSettings(budget=None), CPU, None, torch.float32, slots=slots)
    checkpoint_blocks(module)
    count = len(stream.blocks)
    assert count == len(stream.sizes) >= 9
    batches = Batches(family)
    inject(module, resolve_targets(module, denoiser.target_presets, "all", ""), NetworkConfig(rank=1), seed=0)

    def pass_once(position):
        batch = batches.at(position)
        denoiser.predict(batch.latents_BCHW, torch.tensor([1.0]), batch.conditioning).square().mean().backward()

    pass_once(0)
    pass_once(1)  # what followed what is known now
    for position in range(2, 4):
        moves, waits = stream.ring.moves, stream.ring.waits
        pass_once(position)
        assert stream.ring.moves - moves <= 2 * (count - slots)
        assert stream.ring.waits - waits == 0 or slots == 1
    assert stream.arena.peak <= arena_limit


@pytest.mark.parametrize("budget", ["one block streamed", "half", "two buffers", "one buffer"])
def test_what_fits_stays_and_the_budget_is_kept_at_every_moment(budget):
    laid = whole("sd")
    two, one = smallest_budget("sd", 2), smallest_budget("sd", 1)
    limit = {
        "one block streamed": laid.total - 1,
        "half": (laid.total + two) // 2,
        "two buffers": two,
        "one buffer": one,
    }[budget]
    streamed = train("sd", StreamSettings(budget=limit))
    stream = stream_of(streamed[2].module)
    assert_equal(resident("sd"), streamed)
    assert stream.arena.peak <= limit
    assert stream.arena.live == stream.arena.peak
    if budget == "half":
        assert 2 < len(stream.blocks) < len(stream.sizes)


def test_below_the_smallest_budget_it_is_refused_with_the_number_that_works():
    with pytest.raises(ConfigError, match=r"give ([0-9.]+) or more") as error:
        loaded("sd", StreamSettings(budget=smallest_budget("sd", 1) // 2))
    least = float(str(error.value).rpartition("give ")[2].split()[0])
    _, denoiser = loaded("sd", StreamSettings(budget=round(least * 1e9)))
    assert stream_of(denoiser.module).ring is not None
    with pytest.raises(ConfigError):
        loaded("sd", StreamSettings(budget=round((least - 0.0001) * 1e9) - 1))


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), fixed=st.integers(0, 50), budget=st.integers(0, 1000)
)
def test_a_plan_keeps_its_budget_or_none_could(sizes, fixed, budget):
    every = tuple(range(len(sizes)))
    try:
        plan = choose(sizes, fixed, budget)
    except ConfigError:
        least = min(fixed + sum(sizes), needed(sizes, fixed, StreamPlan(every, 1)))
        assert budget < least
        return
    assert needed(sizes, fixed, plan) <= budget
    assert len(set(plan.streamed)) == len(plan.streamed)
    assert set(plan.streamed) <= set(every)
    if plan.streamed:
        assert fixed + sum(sizes) > budget  # only where it has to be


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(
    "loading",
    [{"storage": torch.bfloat16}, {"storage": torch.bfloat16, "dtype": torch.bfloat16}, {"storage": torch.float8_e4m3fn}, {"quantize": "int8"}, {"quantize": "float8"}, {"quantize": "nf4"}, {"matmul": "int8"}, {"matmul": "fp8"}],
    ids=["bf16 kept", "bf16 computed", "fp8", "int8", "float8", "nf4", "matmul int8", "matmul fp8"],
)  # fmt: skip
def test_weights_of_every_format_are_streamed(loading, kind):
    """Cast on use, packed or rounded: as they would be on the device."""
    budget = smallest_budget("sd3", 1, **loading)
    streamed = train("sd3", StreamSettings(budget=budget), kind=kind, **loading)
    assert_equal(train("sd3", None, kind=kind, **loading), streamed)
    stream = stream_of(streamed[2].module)
    assert stream.ring.moves > 0
    if loading.keys() & {"quantize", "matmul"}:
        assert max(stream.sizes) < 0.6 * max(whole("sd3").sizes)


def test_buffers_are_used_by_no_one_once_they_are_filled_anew():
    _, denoiser = loaded("sd", None)
    batches = Batches(families.get("sd"))
    stream_base(denoiser.module, StreamSettings(budget=None), CPU, None, torch.float32, copier=lambda *_: Poisoning())
    assert stream_of(denoiser.module).ring.copier
    checkpoint_blocks(denoiser.module)
    paths = resolve_targets(denoiser.module, denoiser.target_presets, "all", "")
    adapter = inject(denoiser.module, paths, NetworkConfig(rank=2), seed=0, compute_dtype=torch.float32)
    optimizer = make_optimizer(adapter.parameters().values(), OptimizerConfig(learning_rate=1e-2))
    loss = LossSettings(noise_levels=NoiseLevels(law=Uniform()))
    steps = fit(
        denoiser,
        Training(adapter=adapter, optimizer=optimizer),
        batches,
        LoopSettings(loss=loss, seed=0, accumulation=2),
        lambda _: 1e-2,
    )
    losses = [next(steps).loss for _ in range(STEPS)]
    assert_equal(resident("sd"), (losses, adapter.parameters()))


def test_the_weights_stay_where_they_are_and_as_they_were():
    family, plain = loaded("sd", None)
    _, denoiser = loaded("sd", StreamSettings(budget=None))
    stream = stream_of(denoiser.module)
    before = [home.data_ptr() for block in stream.blocks for home in block.homes()]
    batch = Batches(family).at(0)
    denoiser.predict(batch.latents_BCHW, torch.tensor([1.0]), batch.conditioning)
    homes = [home for block in stream.blocks for home in block.homes()]
    assert [home.data_ptr() for home in homes] == before
    theirs = dict(plain.module.named_parameters())
    mine = dict(denoiser.module.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[path], theirs[path]) for path in mine)
    assert device_of(denoiser.module) == device_of(plain.module) == CPU


def test_nothing_is_left_after_the_run():
    import gc
    import weakref

    _, denoiser = loaded("sd", StreamSettings(budget=None))
    stream = stream_of(denoiser.module)
    kept = weakref.ref(stream.ring)
    arena, fixed = stream.arena, stream.fixed
    stream.ring.close()
    assert arena.live == fixed
    with pytest.raises(AssertionError, match="closed"):
        stream.ring.get(stream.blocks[0])
    del denoiser, stream
    gc.collect()
    assert kept() is None


def test_more_than_the_arena_may_hold_raises_what_cuda_would():
    arena = Arena(CPU, limit=100)
    arena.buffer(60)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="may hold 100"):
        arena.buffer(41)
    arena.release(60)
    assert arena.buffer(100).numel() == 100
    assert arena.peak == 100


def test_blocks_are_the_smallest_members_of_lists_or_what_is_recomputed_as_a_whole():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.ModuleList([Layers(), Layers()])
            self.out = nn.Linear(2, 2)

    network = nn.Module()
    network.embed = nn.Linear(2, 2)
    network.stages = nn.ModuleList([Stage(), Stage()])
    assert list(find_blocks(network)) == [f"stages.{i}.inside.{j}" for i in (0, 1) for j in (0, 1)]
    assert find_blocks(network)["stages.1.inside.0"] == ["stages.1.inside.0.a", "stages.1.inside.0.b"]
    assert list(find_blocks(network, ["Stage"])) == ["stages.0", "stages.1"]
    assert len(find_blocks(network, ["Stage"])["stages.0"]) == 5


@pytest.mark.parametrize(
    "device", [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=pytest.mark.gpu)], ids=str
)
def test_the_adapter_lies_on_the_device_and_trains_there_as_on_a_resident_base(device):
    """On a GPU the copies run beside arithmetic, and the adapter must not be laid beside weights that stay in RAM."""
    budget = smallest_budget("sd", 2)
    streamed = train("sd", StreamSettings(budget=budget), device=device)
    assert_equal(train("sd", None, device=device), streamed)
    assert {parameter.device for parameter in streamed[1].values()} == {device}
    assert device_of(streamed[2].module) == device
    stream = stream_of(streamed[2].module)
    assert stream.arena.peak <= budget
    assert {home.device.type for block in stream.blocks for home in block.homes()} == {"cpu"}
