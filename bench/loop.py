"""What the loop costs beside the network: time per step / bare forward + backward + optimizer of the same batch.

A UNet of SD1.5's class with 26 million parameters, rank 8 on all attention and feed-forward layers. Aim: at most 1.05.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.families.common.tiny import random_network
from lora_loom.trainer.families.common.unet import UNET_TARGETS
from lora_loom.trainer.families.sd import VARIANTS, SDDenoiser
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.training.loop import LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.training.step import LossSettings
from lora_loom.trainer.types import Batch, StepResult

from .common import interleaved, ratio, report

TOY = {
    "block_out_channels": (320,), "layers_per_block": 1, "cross_attention_dim": 768, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip


def toy_denoiser() -> SDDenoiser:
    from diffusers import UNet2DConditionModel

    module = random_network(UNet2DConditionModel, TOY, 0)
    return SDDenoiser(family="sd", module=module, objective=VARIANTS["sd1"].objective, target_presets=UNET_TARGETS)


def batch(size: int, side: int) -> Batch:
    source = torch.Generator().manual_seed(0)
    return Batch(
        latents_BCHW=torch.randn(size, 4, side, side, generator=source),
        conditioning={"text": torch.randn(size, 77, 768, generator=source)},
        weight_B=torch.ones(size),
        mask_B1HW=None,
        names=("x",) * size,
    )


class OneBatch:
    """The same batch at every position, made as cheaply as a cached one is read."""

    def __init__(self, size: int, side: int) -> None:
        self.batch = batch(size, side)

    def size(self, position: int) -> int:
        return self.batch.size

    def at(self, position: int) -> Batch:
        return self.batch


def toy_steps(data: OneBatch) -> Iterator[StepResult]:
    """The toy being trained, rank 8 on attention and feed-forward layers."""
    denoiser = toy_denoiser()
    adapter = inject(
        denoiser.module, resolve_targets(denoiser.module, UNET_TARGETS, "attention+mlp"), NetworkConfig(rank=8), seed=0
    )
    training = Training(
        adapter=adapter,
        optimizer=make_optimizer(list(adapter.parameters().values()), OptimizerConfig(learning_rate=1e-4)),
    )
    settings = LoopSettings(loss=LossSettings(noise_levels=NoiseLevels(law=Uniform())), seed=0)
    return fit(denoiser, training, data, settings, lambda step: 1e-5)


def main(size: int = 2, side: int = 16, rounds: int = 15) -> None:
    torch.set_num_threads(1)
    denoiser = toy_denoiser()
    paths = resolve_targets(denoiser.module, UNET_TARGETS, "attention+mlp")
    adapter = inject(denoiser.module, paths, NetworkConfig(rank=8), seed=0)
    parameters = list(adapter.parameters().values())
    training = Training(adapter=adapter, optimizer=make_optimizer(parameters, OptimizerConfig(learning_rate=1e-4)))
    data = OneBatch(size, side)
    settings = LoopSettings(loss=LossSettings(noise_levels=NoiseLevels(law=Uniform())), seed=0)
    steps = fit(denoiser, training, data, settings, lambda step: 1e-5)
    bare_optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    fixed: dict[str, Any] = {
        "sample": torch.randn(size, 4, side, side),
        "timestep": torch.tensor([500] * size),
        "encoder_hidden_states": data.batch.conditioning["text"],
    }
    target, numbers = torch.randn(size, 4, side, side), count()

    def bare() -> None:
        next(numbers)
        loss = (denoiser.module(**fixed, return_dict=False)[0] - target).square().mean()
        loss.backward()
        bare_optimizer.step()
        bare_optimizer.zero_grad(set_to_none=True)

    times = interleaved({"loop": lambda: next(steps), "bare": bare}, rounds, warmup=3)
    report(
        "loop",
        {
            "parameters": sum(p.numel() for p in denoiser.module.parameters()),
            "trained modules": len(paths),
            "loop / bare (aim <= 1.05)": ratio(times["loop"], times["bare"]),
            "bare / bare, halves of one series (noise)": ratio(times["bare"][1::2], times["bare"][: rounds - 1 : 2]),
        },
    )


if __name__ == "__main__":
    main()
