"""Networks of published sizes on cards of 8 to 24 GB: what was predicted, and what a GPU then takes. Needs an NVIDIA GPU.

The process may take no more memory than a card has (`torch.cuda.set_per_process_memory_fraction`), and the base is laid out as the plan of
`python -m bench plans` says: resident, or streamed from RAM, where it is as large as its file. Settings as there; fp8 and bf16 alone.

    python -m bench cards
    LOOM_BENCH=flux python -m bench cards      only this family
"""

import os
from typing import Any

import torch

from lora_loom.trainer import families
from lora_loom.trainer.diffusion.denoiser import Denoiser
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.memory_plan.plan import MemoryPlan
from lora_loom.trainer.weights.streaming import GB, StreamSettings, stream_of

from .common import keep, report
from .families import STD, RandomSource, Setting, measured, on_the_gpu
from .network_sizes import SIZES, Size
from .plans import SIDES, STORED, plans

TILE = 1 << 20


class KeptSource(RandomSource):
    """Tensors in RAM: one random tile, repeated, as many times faster as a network is larger."""

    def tensors(self) -> dict[str, torch.Tensor]:
        tile = torch.empty(TILE).normal_(0, STD, generator=torch.Generator().manual_seed(0)).to(self.setting.dtype)

        def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            if len(shape) == 1:
                return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
            count = torch.Size(shape).numel()
            return torch.cat([tile] * -(-count // TILE))[:count].view(shape)

        return {name: make(name, shape) for name, shape in self.layout.items()}


def laid_out(size: Size, stored: torch.dtype, stream: StreamSettings | None, device: torch.device) -> Denoiser:
    """A network as a plan lays it out."""
    source = KeptSource(size, Setting(device=torch.device("cpu"), dtype=stored, pixels=0))
    loading = Loading(dtype=stored, device=device, compute_dtype=torch.bfloat16, stream=stream)
    denoiser = families.get(size.family).load_denoiser(source, size.variant, loading)
    checkpoint_blocks(denoiser.module)
    return denoiser


def on_a_card(size: Size, stored: str, side: int, plan: MemoryPlan, device: torch.device) -> dict[str, Any]:
    """Figures of steps, beside the plan's."""
    denoiser = laid_out(size, STORED[stored], plan.stream, device)
    found = measured(denoiser, size, Setting(device=device, dtype=torch.bfloat16, pixels=side), "checkpointing")
    stream = stream_of(denoiser.module)
    return {
        **found,
        "predicted MiB": round(plan.peak / 2**20, 1),
        "measured / predicted": round(found["peak MiB"] * 2**20 / plan.peak, 3),
        "streamed blocks": f"{plan.streamed} of {plan.blocks}",
        "not in advance": stream.ring.waits if stream is not None and stream.ring is not None else 0,
    }


def main() -> None:
    if not torch.cuda.is_available():
        print("== cards: left out, there is no GPU here")
        return
    chosen = set(filter(None, os.environ.get("LOOM_BENCH", "").split(",")))
    device = torch.device("cuda", torch.cuda.current_device())
    whole = torch.cuda.get_device_properties(device).total_memory
    figures: dict[str, Any] = {}
    for size in SIZES:
        if size.toy or (chosen and size.family not in chosen):
            continue
        for stored, side in ((stored, side) for stored in ("fp8", "bf16") for side in SIDES):
            for gigabytes, plan in plans(size, stored, side):
                if not isinstance(plan, MemoryPlan) or gigabytes * GB > whole:
                    continue
                torch.cuda.set_per_process_memory_fraction(plan.available / whole, device)  # type: ignore[operator]
                name = f"{size.name} {stored}, {side} px, {gigabytes} GB"
                figures[name] = on_the_gpu(lambda: on_a_card(size, stored, side, plan, device))  # noqa: B023 - called at once
                keep("cards", figures)
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    report("cards", figures)


if __name__ == "__main__":
    main()
