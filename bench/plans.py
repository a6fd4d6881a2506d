"""What the memory planner predicts for real sizes on cards of 8 to 24 GB. Nothing is loaded: networks and steps are shapes.

AdamW, rank 16 on the family's default targets, batch 1, gradient checkpointing, bfloat16 arithmetic on a base stored as fp8 or
bfloat16, or quantized to nf4. A card has 1e9 bytes a GB, of which the CUDA context takes 0.8 GB and the allocator 7 %. Seconds: the step's arithmetic
at half of an RTX 4070's dense bfloat16 rate, and copies of streamed blocks at 24 GB/s (PCIe 4), whichever is longer, in the forward
pass and in the backward pass. Encoders are not part of it.

    python -m bench plans
    LOOM_BENCH=flux,qwen_image python -m bench plans      only these families
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lora_loom.trainer import families
from lora_loom.trainer.config.run import MemoryConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from lora_loom.trainer.diffusion.denoiser import Denoiser
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.memory_plan.base_sizes import BaseSizes, base_sizes, stand_for_quantized
from lora_loom.trainer.memory_plan.card import CONTEXT, SLACK, Card
from lora_loom.trainer.memory_plan.plan import MemoryPlan
from lora_loom.trainer.memory_plan.planner import Around, Planner, Way
from lora_loom.trainer.memory_plan.rehearsal import Rehearsal, Step, rehearse
from lora_loom.trainer.memory_plan.shapes_only import META, shapes_only
from lora_loom.trainer.training.step import LossSettings
from lora_loom.trainer.types import Geometry
from lora_loom.trainer.types import Size as Pixels
from lora_loom.trainer.weights.frozen import compute_in
from lora_loom.trainer.weights.streaming import GB

from .common import keep
from .families import LATENT_PIXELS, RandomSource, Setting
from .network_sizes import SIZES, Size

CARDS = (8, 12, 16, 24)
SIDES = (512, 1024)
STORED = {"nf4": torch.bfloat16, "fp8": torch.float8_e4m3fn, "bf16": torch.bfloat16}
RATE = 58e12 / 2
"""FLOP/s: half of an RTX 4070's dense bfloat16 rate."""
BUS = 24e9
FORWARD = 1 / 3
"""Share of a checkpointed step's arithmetic in its forward pass: the backward pass recomputes it, and takes as much again."""


@dataclass
class RealRun:
    """A network of a published size, on shapes."""

    size: Size
    stored: torch.dtype

    def structure(self) -> Denoiser:
        setting = Setting(device=META, dtype=self.stored, pixels=0)
        loading = Loading(dtype=self.stored, device=META, compute_dtype=torch.bfloat16)
        family = families.get(self.size.family)
        denoiser = family.load_denoiser(RandomSource(self.size, setting), self.size.variant, loading)
        compute_in(denoiser.module, torch.bfloat16)
        return denoiser

    def sizes(self, quantize: str) -> BaseSizes:
        """As it is stored, or quantized."""
        return base_sizes(self.structure().module, quantize)

    def step(self, way: Way, image: Pixels) -> Rehearsal:
        """One image of random noise."""
        denoiser, family = self.structure(), families.get(self.size.family)
        if way.memory.gradient_checkpointing:
            checkpoint_blocks(denoiser.module)
        if way.quantize != "none":
            stand_for_quantized(denoiser.module)
        network = NetworkConfig(rank=16)
        step = Step(
            targets=resolve_targets(denoiser.module, denoiser.target_presets, "default"),
            network=network,
            optimizer=OptimizerConfig(learning_rate=1e-4),
            loss=LossSettings(noise_levels=NoiseLevels(law=Uniform())),
            compute_dtype=torch.bfloat16,
        )
        width, height = image
        latents = (way.batch_size, family.latent_space.channels, height // LATENT_PIXELS, width // LATENT_PIXELS)
        text = {name: torch.empty(shape, device=META) for name, shape in self.size.text.items()}
        with shapes_only():
            made = family.condition([text] * way.batch_size, [Geometry.whole(image)] * way.batch_size, 1.0)
        return rehearse(denoiser, step, latents, made)


def plans(size: Size, stored: str, side: int) -> Iterator[tuple[int, MemoryPlan | ConfigError]]:
    """The plan for each card, or why there is none."""
    run = RealRun(size, STORED[stored])
    planner: Planner | None = None
    for gigabytes in CARDS:
        card = Card(name=f"{gigabytes} GB", free=gigabytes * GB - CONTEXT, slack=SLACK)
        known = {} if planner is None else {"_known": planner._known, "_known_sizes": planner._known_sizes}
        planner = Planner(
            run=run,
            card=card,
            training=TrainingConfig(steps=1),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            way=Way(memory=MemoryConfig(checkpoint="all"), batch_size=1, quantize="nf4" if stored == "nf4" else "none"),
            images={(side, side): 1},
            around=Around(),
            rate=2 * RATE,
            **known,  # type: ignore[arg-type]
        )
        try:
            yield gigabytes, planner.plan()
        except ConfigError as error:
            yield gigabytes, error


def seconds(plan: MemoryPlan) -> float:
    """Of a step whose copies hide behind arithmetic as far as they can."""
    assert plan.seconds is not None
    arithmetic, copies = plan.seconds[0], plan.ram / BUS
    return max(FORWARD * arithmetic, copies) + max((1 - FORWARD) * arithmetic, copies)


def cell(plan: MemoryPlan | ConfigError) -> str:
    """Peak in GB with the allocator's share, streamed blocks of all, seconds a step."""
    if isinstance(plan, ConfigError):
        return "does not fit"
    blocks = f", {plan.streamed} of {plan.blocks} streamed" if plan.streamed else ""
    return f"{plan.peak * (1 + SLACK) / GB:.1f} GB{blocks}, {seconds(plan):.2g} s"


def main() -> None:
    rows: dict[str, dict[str, str]] = {}
    chosen = set(filter(None, os.environ.get("LOOM_BENCH", "").split(",")))
    for size in SIZES:
        if size.toy or (chosen and size.family not in chosen):
            continue
        for stored in STORED:
            for side in SIDES:
                cells = {f"{gigabytes} GB": cell(plan) for gigabytes, plan in plans(size, stored, side)}
                name = f"{size.name} {stored}, {side} px"
                rows[name] = cells
                print(f"{name}: " + "; ".join(f"{card} {text}" for card, text in cells.items()), flush=True)
                keep("plans", rows)


if __name__ == "__main__":
    main()
