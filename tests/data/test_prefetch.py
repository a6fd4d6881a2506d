"""Batches read in the background are the same batches: whatever is read ahead, by however many threads, from wherever on."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.data.prefetch import Prefetched
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.types import Batch
from tests.conftest import SilentHost, make_config

CPU = torch.device("cpu")


class Numbers:
    """The batch of a position says which one it is; slow at some positions, so that threads overtake each other."""

    def __init__(self, fails_at=None):
        self.read, self.fails_at = [], fails_at

    def size(self, position):
        return 1

    def at(self, position):
        self.read.append(position)
        time.sleep(0.002 * (position * 7 % 3))
        if position == self.fails_at:
            raise RunError(f"position {position}")
        latents = torch.full((1, 1, 2, 2), float(position))
        return Batch(
            latents_BCHW=latents, conditioning={}, weight_B=torch.ones(1), mask_B1HW=None, names=(str(position),)
        )


@given(
    ahead=st.integers(0, 4),
    workers=st.integers(1, 4),
    stride=st.integers(1, 3),
    visits=st.lists(st.integers(0, 30), min_size=1, max_size=8),
)
def test_every_position_gives_its_own_batch(ahead, workers, stride, visits):
    """In order, and after jumps to anywhere."""
    with Prefetched(Numbers(), CPU, ahead=ahead, workers=workers, stride=stride) as batches:
        for first in visits:
            for position in range(first, first + 3 * stride, stride):
                assert batches.at(position).names == (str(position),)


def test_the_next_one_is_read_while_this_one_is_used():
    source = Numbers()
    with Prefetched(source, CPU, ahead=2, stride=3) as batches:
        batches.at(0)
        until = time.monotonic() + 5
        while len(source.read) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        assert source.read == [0, 3, 6]
        for position in (3, 6, 9):
            batches.at(position)
    assert sorted(set(source.read)) == sorted(source.read), "nothing is read twice"


def test_a_problem_is_raised_in_its_turn():
    with Prefetched(Numbers(fails_at=2), CPU, ahead=3) as batches:
        assert batches.at(1).names == ("1",)
        with pytest.raises(RunError, match="position 2"):
            batches.at(2)
        assert batches.at(3).names == ("3",), "and the rest can be read"


def test_no_thread_stays():
    before = threading.active_count()
    with pytest.raises(RunError), Prefetched(Numbers(fails_at=1), CPU, ahead=3, workers=3) as batches:  # noqa: PT012
        batches.at(0)
        batches.at(1)
    assert threading.active_count() == before


def test_a_run_is_bit_for_bit_the_same_with_and_without(tmp_path):
    """Stopped and continued with another setting, too: what is read ahead is no part of a run."""
    from safetensors.torch import load_file

    options = {"training": {"steps": 4, "batch_size": 2, "save_every": 2, "gradient_accumulation_steps": 2}}
    results = []
    for name, settings in {"none": [0], "changed": [0, 2]}.items():
        for number, prefetch in enumerate(settings):
            config = make_config("sd", tmp_path / name, memory={"prefetch": prefetch}, **options)
            last = number == len(settings) - 1
            outcome = train(config, SilentHost(stop_at=None if last else 2))
        results.append(load_file(outcome.lora))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in results[0])


@pytest.mark.gpu
def test_on_a_gpu_the_copy_is_finished_before_the_step_uses_it():
    """Large copies on the reader's stream, memory reused at once by the step's: any missing wait shows as a wrong number."""
    device = torch.device("cuda")

    class Large(Numbers):
        def at(self, position):
            latents = torch.full((8, 4, 512, 512), float(position)).to(device)
            return Batch(latents_BCHW=latents * 2, conditioning={"samples": [{"text": latents + 1}]}, weight_B=torch.ones(1), mask_B1HW=None, names=())  # fmt: skip

    with Prefetched(Large(), device, ahead=2, workers=2) as batches:
        for position in range(60):
            batch = batches.at(position)
            text = batch.conditioning["samples"][0]["text"]
            assert [float(x) for x in (batch.latents_BCHW.min(), batch.latents_BCHW.max())] == [2.0 * position] * 2
            assert [float(x) for x in (text.min(), text.max())] == [position + 1.0] * 2
            del batch, text
            for _ in range(4):
                torch.full((8, 4, 512, 512), -1.0, device=device)
