"""Nothing draws from torch's global generator: every random operation of a run is caught and asked for its own.

Another thread cannot be disturbed by what is never touched; that holds for every moment, where a thread that watches
its own numbers sees only those it happens to draw. (Caught are all operations of the thread, backward included.)
"""

import random
import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_loom.trainer import families
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import FAMILIES, SilentHost, make_config, tiny_folder


class OwnGenerators(TorchDispatchMode):
    """Fails on a random operation without a generator; counts those that have one."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags and not self.harmless(func, args, kwargs or {}):
            own = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Generator)]
            assert own, f"{func} draws from torch's global generator"
            self.count += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def harmless(func, args, kwargs):
        """Meta tensors have no numbers; attention draws for its dropout only, which is none."""
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in args):
            return True
        values = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        return "attention" in str(func) and not values.get("dropout_p", 0.0)


def global_states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def unchanged(before):
    after = global_states()
    return torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_the_guard_can_fail():
    with OwnGenerators(), pytest.raises(AssertionError, match="global generator"):
        torch.randn(2)
    with OwnGenerators(), pytest.raises(AssertionError, match="global generator"):
        torch.nn.functional.dropout(torch.ones(3), 0.5)
    attended = torch.ones(1, 2, 3, 4)
    with OwnGenerators(), pytest.raises(AssertionError, match="global generator"):
        torch.nn.functional.scaled_dot_product_attention(attended, attended, attended, dropout_p=0.5)
    with OwnGenerators() as guard:
        torch.nn.functional.scaled_dot_product_attention(attended, attended, attended)
        torch.randn(2, generator=torch.Generator())
    assert guard.count == 1


KINDS = {"flux": "dora", "sd": "loha", "sdxl": "lokr"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_run_and_its_sweep(tmp_path, family):
    """Loading, encoding into a new cache, injecting, dropout, checkpointing, EMA, held-out loss, resuming, sampling."""
    tiny_folder(family)
    config = make_config(
        family,
        tmp_path,
        dataset=[{"folder": make_config("sd", tmp_path).dataset[0].folder, "caption_dropout": 0.3, "flip": True}],
        data={"validation_split": 0.34},
        network={
            "kind": KINDS.get(family, "lora"),
            "dropout": 0.2 if KINDS.get(family, "lora") in ("lora", "dora") else 0.0,
        },
        objective={"timestep_sampling": "beta", **({"noise_offset": 0.1} if family in ("sd", "sdxl") else {})},
        training={"steps": 2, "save_every": 0, "ema_decay": 0.9, "gradient_accumulation_steps": 2},
        validation={"timesteps": 1},
        memory={"gradient_checkpointing": True},
        output={"cache": str(tmp_path / "cache")},
        sweep={"prompts": ["a cat"], "seeds": "-1", "steps": 1, "guidance": [{"method": "apg", "eta": 0.1}]},
    )
    before = global_states()
    with OwnGenerators() as guard:
        train(config, SilentHost(stop_at=1))
        assert train(config, SilentHost()).state == "finished"
        assert sweep(config, SilentHost()).rendered == 3
    assert guard.count > 20
    assert unchanged(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_toys_are_made_without_it(family):
    before = global_states()
    first = families.get(family).tiny()
    torch.manual_seed(5)
    second = families.get(family).tiny()
    pairs = zip(first.denoiser.module.parameters(), second.denoiser.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    torch.set_rng_state(before[0])
    with OwnGenerators() as guard:
        families.get(family).tiny()
    assert guard.count > 20
    assert unchanged(before)


def test_another_threads_numbers_run_on_through_a_whole_run(tmp_path):
    """Not one number is lost or doubled from the first step to the last, however long the run takes."""
    drawn, stop = [], threading.Event()

    def drawing():
        while not stop.is_set():
            drawn.append(torch.randn(()).item())
            stop.wait(0.0005)

    torch.manual_seed(99)
    thread = threading.Thread(target=drawing)
    thread.start()
    try:
        train(
            make_config("sd3", tmp_path, network={"dropout": 0.2}, memory={"gradient_checkpointing": True}),
            SilentHost(),
        )
    finally:
        stop.set()
        thread.join()
    torch.manual_seed(99)
    assert len(drawn) > 100
    assert drawn == [torch.randn(()).item() for _ in drawn]
