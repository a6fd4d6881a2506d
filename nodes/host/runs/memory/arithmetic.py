"""The dtype that a run computes in where LoomMemory leaves it to the MODEL: on a CPU that computes bfloat16 too, the faster one.

Which is faster depends on processor and network (bfloat16 halves large products, and costs conversions in small ones), so both are
tried on a micro-batch of the run. A run keeps what it began with.
"""

import os
import time
from collections.abc import Callable

import torch

from .....trainer.lora.adapter import inject
from .....trainer.runs.run_folder import RunFolder
from .....trainer.seeding import StepKey
from .....trainer.training.loss_settings import loss_settings, noise_levels
from .....trainer.training.step import train_step
from .....trainer.types import Batch, Record
from .....trainer.weights.devices import DTYPES
from .....trainer.weights.frozen import compute_in
from ....sockets.values import MemoryValue
from ...backend.checkpointing import checkpoint
from ...backend.denoiser import LoadedDenoiser, load_denoiser
from ...comfy_types import ModelPatcher
from .memory_plan import GraphRun

SWITCH = "LORA_LOOM_TRIAL"
"""0 leaves the trial out: runs then compute in the MODEL's own dtype."""
KEY = "arithmetic"
"""Of run.json: {"dtype": …, "seconds": {dtype: of a micro-batch}}; absent where nothing was tried."""
GAIN = 0.95
"""bfloat16 is taken below this share of float32's time: it rounds more."""
ROUNDS = 3
LONG = 5.0
"""Seconds of a micro-batch from which on one of each dtype is enough."""


def settle_arithmetic(
    run: GraphRun, patcher: ModelPatcher, memory: MemoryValue, folder: RunFolder, log: Callable[[str], None]
) -> dict[str, Record]:
    """Give the denoiser of a run its dtype; returns the entry of run.json, {} where nothing was tried.

    A precision that was chosen stays, and so does the dtype of weights that are packed.
    """
    if memory.precision != "auto" or memory.packing != "none":
        return {}
    if folder.exists() and not folder.has_kept_nothing():
        found: Record = folder.read().get(KEY) or {}
    else:
        found = _tried(run, patcher, log)
    if not found:
        return {}
    run.denoiser.compute_dtype = DTYPES[found["dtype"]]
    return {KEY: found}


def _tried(run: GraphRun, patcher: ModelPatcher, log: Callable[[str], None]) -> Record:
    if os.environ.get(SWITCH) == "0" or not _has_choice(run.denoiser, torch.device(patcher.load_device)):
        return {}
    seconds = _seconds(run, patcher)
    dtype = "bfloat16" if seconds["bfloat16"] < GAIN * seconds["float32"] else "float32"
    text = " and ".join(f"{value:.2g} s in {name}" for name, value in seconds.items())
    log(f"arithmetic: {dtype} (a micro-batch takes {text} here)")
    return {"dtype": dtype, "seconds": {name: round(value, 4) for name, value in seconds.items()}}


@torch.inference_mode(False)
@torch.enable_grad()
def _seconds(run: GraphRun, patcher: ModelPatcher) -> dict[str, float]:
    """{dtype: seconds of a micro-batch}, the least of a few rounds in turns."""
    batch = run.batches(run.dataset.training).at(0)
    steps = {name: _step(run, patcher, batch, DTYPES[name]) for name in ("float32", "bfloat16")}
    found: dict[str, float] = {}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            taken = time.perf_counter() - began
            found[name] = taken if turn < 2 else min(taken, found[name])  # kernels are chosen in the first
        if max(found.values()) > LONG:
            break
    return found


def _step(run: GraphRun, patcher: ModelPatcher, batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    """A forward and backward pass over the MODEL's weights with an adapter of its own."""
    plan, denoiser = run.plan, load_denoiser(patcher, compute_dtype=dtype)
    denoiser.settings = run.denoiser.settings
    compute_in(denoiser.module, dtype)
    checkpoint(denoiser.module, denoiser.settings.blocks, plan.memory)
    seed = plan.training.seed
    adapter = inject(denoiser.module, list(run.targets), plan.network, seed=seed, compute_dtype=dtype)
    settings = loss_settings(plan.objective, noise_levels(plan.objective, denoiser.objective, run.shift))
    key = StepKey(seed=seed, step=0, micro_batch=0)

    def step() -> None:
        loss_B = train_step(denoiser, batch, settings, key, adapter.disabled)
        loss_B.sum().backward()  # type: ignore[no-untyped-call]
        for one in adapter.parameters().values():
            one.grad = None

    return step


def _has_choice(denoiser: LoadedDenoiser, device: torch.device) -> bool:
    """Whether a network that computes in float32 would be one for bfloat16 on this device."""
    return device.type == "cpu" and denoiser.compute_dtype == torch.float32 and computes_bfloat16()


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    tests = (getattr(torch.cpu, name, bool) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(test()) for test in tests)
