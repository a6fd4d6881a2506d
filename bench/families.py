"""Every family's training step: seconds, peak memory, share of the chip's matmul peak. Toys on the CPU, real sizes on a GPU.

Networks have random weights that are made on the device itself, and go through the loading that files go through, so a
20 B model needs no memory of the host. Real sizes: bfloat16, 1024 px, rank 16 on the family's default targets, batch 1,
AdamW; without and with gradient checkpointing, and with it packed to int8, with products in int8, and compiled (the last two on a GPU
alone); on cards of 8 to 24 GB: `python -m bench cards`. Toys: the same in float32 at 128 px. The peak is
what one large matrix product reaches in the same run; the arithmetic of a step is counted by torch, recomputation included.
On a CPU seconds are processor time of one thread, and memory is the process's own, the libraries included.

    python -m bench families            toys, and real sizes where there is a GPU
    LOOM_BENCH=flux,sdxl python -m bench families      only these families
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.diffusion.denoiser import Denoiser
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.families.common.source import Source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.training.loop import LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.training.step import LossSettings
from lora_loom.trainer.types import Batch, Geometry
from lora_loom.trainer.weights.compiled import CompiledBlocks
from lora_loom.trainer.weights.frozen import compute_in
from lora_loom.trainer.weights.packing.layers import use_products
from lora_loom.trainer.weights.quantize import quantize
from lora_loom.trainer.weights.streaming import find_blocks

from .common import keep, report
from .network_sizes import SIZES, Size

WAYS = ("plain", "checkpointing", "int8 + checkpointing")
GPU_WAYS = (*WAYS, "int8 products + checkpointing", "compiled + checkpointing")
STEPS, WARMUP = 5, 2
STD = 0.02
LATENT_PIXELS = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how networks are measured."""

    device: torch.device
    dtype: torch.dtype
    pixels: int


class RandomSource(Source):
    """A diffusers folder that is not there: its tensors are random and made on the device when they are asked for."""

    def __init__(self, size: Size, setting: Setting) -> None:
        super().__init__(Path(size.network), (Path(size.network),), config=dict(size.config))
        self.setting = setting

    @cached_property
    def layout(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that diffusers' class of this configuration has."""
        import diffusers

        with torch.device("meta"):
            network: nn.Module = getattr(diffusers, Path(self.path).name).from_config(dict(self.config or {}))
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override] - there are no headers to read
        return self.layout

    @property
    def quanto_map(self) -> None:  # type: ignore[override]
        return None

    def tensors(self) -> dict[str, Tensor]:
        device = self.setting.device
        source = None if device.type == "meta" else torch.Generator(device).manual_seed(0)

        def make(name: str, shape: tuple[int, ...]) -> Tensor:
            if len(shape) == 1:
                return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, device=device, dtype=self.setting.dtype)
            return torch.empty(shape, device=device, dtype=self.setting.dtype).normal_(0, STD, generator=source)

        return {name: make(name, shape) for name, shape in self.layout.items()}


def load(size: Size, setting: Setting, way: str) -> Denoiser:
    family = families.get(size.family)
    loading = Loading(dtype=setting.dtype, device=setting.device)
    denoiser = family.load_denoiser(RandomSource(size, setting), size.variant, loading)
    if way.startswith("int8 products"):
        use_products(denoiser.module, "int8", setting.dtype, setting.device)
    elif way.startswith("int8"):
        quantize(denoiser.module, "int8", setting.dtype, setting.device)
    compute_in(denoiser.module, setting.dtype)
    if way.endswith("checkpointing"):
        checkpoint_blocks(denoiser.module)
    return denoiser


class OneBatch:
    """The same random batch of one image at every position."""

    def __init__(self, size: Size, setting: Setting) -> None:
        family, side = families.get(size.family), setting.pixels
        source = torch.Generator().manual_seed(0)
        text = {name: torch.randn(shape, generator=source) for name, shape in size.text.items()}
        place = Geometry.whole((side, side))
        made = family.condition([text], [place], 1.0)
        latents = (1, family.latent_space.channels, side // LATENT_PIXELS, side // LATENT_PIXELS)
        self.batch = Batch(
            latents_BCHW=torch.randn(latents, generator=source).to(setting.device),
            conditioning={name: tensor.to(setting.device) for name, tensor in made.items()},
            weight_B=torch.ones(1, device=setting.device),
            mask_B1HW=None,
            names=("x",),
        )

    def size(self, position: int) -> int:
        return 1

    def at(self, position: int) -> Batch:
        return self.batch


def measure(size: Size, setting: Setting, way: str) -> dict[str, Any]:
    """Figures of one network trained one way."""
    return measured(load(size, setting, way), size, setting, way)


def measured(denoiser: Denoiser, size: Size, setting: Setting, way: str) -> dict[str, Any]:
    """Figures of steps on a network that is loaded."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded = resident(setting.device)
    parameters = sum(tensor.numel() for tensor in denoiser.module.parameters())
    targets = resolve_targets(denoiser.module, denoiser.target_presets, "default")
    adapter = inject(denoiser.module, targets, NetworkConfig(rank=16), seed=0, compute_dtype=setting.dtype)
    if way.startswith("compiled"):
        CompiledBlocks(denoiser.module, list(find_blocks(denoiser.module)))
    optimizer = make_optimizer(adapter.parameters().values(), OptimizerConfig(learning_rate=1e-4))
    training = Training(adapter=adapter, optimizer=optimizer)
    settings = LoopSettings(loss=LossSettings(noise_levels=NoiseLevels(law=Uniform())), seed=0)
    steps = fit(denoiser, training, OneBatch(size, setting), settings, lambda step: 1e-5)
    seconds = [timed(lambda: next(steps), setting.device) for _ in range(WARMUP + STEPS)][WARMUP:]
    # The kernel's high-water mark is summed from per-thread counters that it gathers now and then, so on a CPU it may lag
    # behind the bytes that statm shows at the same moment.
    peak = max(loaded, highest(setting.device))
    with FlopCounterMode(display=False) as counter:
        next(steps)
    second = statistics.median(seconds)
    return {
        "parameters": parameters,
        "s/step": round(second, 5),
        "loaded MiB": round(loaded / 2**20, 1),
        "peak MiB": round(peak / 2**20, 1),
        "TFLOP/step": round(counter.get_total_flops() / 1e12, 6),
        "share of matmul peak": round(counter.get_total_flops() / second / matmul_peak(setting), 4),
    }


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds; on a CPU those that this process computed for, which others on the machine do not lengthen."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def matmul_peak(setting: Setting) -> float:
    """FLOP/s of a large square product in the same number format."""
    side = 8192 if setting.device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, setting.device) for _ in range(10))


def resident(device: torch.device) -> int:
    """Bytes in use."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def highest(device: torch.device) -> int:
    """Most bytes that were in use, since this process began to measure."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_child(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of a forked process, so that one network's highest memory is not another's."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    answer: Any = context.SimpleQueue()
    child = context.Process(target=lambda: answer.put(call()))
    child.start()
    found: dict[str, Any] = answer.get()
    child.join()
    return found


def on_the_gpu(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        return {"out of memory": f"more than {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"}
    except Exception as error:  # noqa: BLE001 - time on a GPU is dear: the other networks are still measured
        return {"failed": f"{type(error).__name__}: {error}"}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Rows for docs/benchmarks.md."""
    names = ("s/step", "loaded MiB", "peak MiB", "share of matmul peak")
    lines = [f"| network | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for name, found in figures.items():
        instead = next((word for word in ("out of memory", "failed") if word in found), "")
        cells = [str(found.get(key, instead)) for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    wanted = [name for name in os.environ.get("LOOM_BENCH", "").split(",") if name] or list(families.all_families())
    toys = Setting(device=torch.device("cpu"), dtype=torch.float32, pixels=128)
    real = Setting(device=torch.device("cuda"), dtype=torch.bfloat16, pixels=1024)
    figures: dict[str, dict[str, Any]] = {}
    load(SIZES[0], toys, "int8 + checkpointing")  # imports the libraries here, not once in every child
    for size in (size for size in SIZES if size.family in wanted):
        for way in WAYS if size.toy else GPU_WAYS:
            if size.toy:
                figures[f"{size.name}, {way}"] = in_a_child(partial(measure, size, toys, way))
            elif torch.cuda.is_available():
                figures[f"{size.name}, {way}"] = on_the_gpu(partial(measure, size, real, way))
            keep("families", figures)
    report("families", figures)
    print(table(figures))
    if not torch.cuda.is_available():
        print("no GPU here: the real sizes were left out")
    if failed := [name for name, found in figures.items() if "failed" in found]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
