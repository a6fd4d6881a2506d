"""What a sweep costs beside sampling: seconds per cell of `render` / bare `sample` + decode of the same pictures.

The demo's base (assets/demo), two LoRAs of rank 16 on attention and feed-forward layers, three seeds each, 20 steps of
Euler with CFG. In the sweep's time: laying each LoRA over the base and taking it off, encoding prompts, writing lossless
PNG files with their recipes. Aim: at most 1.05. Processor time of one thread, so that other jobs hardly count.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config import GuidanceConfig, ModelConfig, NetworkConfig
from lora_loom.trainer.demo.demo import ASSETS
from lora_loom.trainer.denoiser import Denoiser
from lora_loom.trainer.diffusion.guidance import CFG
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.records import Geometry
from lora_loom.trainer.sample import SampleSettings, sample, start_noise
from lora_loom.trainer.sweep import Axes, LoraFile, Rendering, Studio, plan_shots, render

from .common import interleaved, ratio, report

PROMPTS, SEEDS, SIDE, STEPS, RANK = ("a red circle on a meadow",), (0, 1, 2), 128, 20, 16


def random_lora(denoiser: Denoiser, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA on every target of the demo, small enough to leave pictures."""
    source = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in resolve_targets(denoiser.module, denoiser.target_presets, "attention+mlp", NetworkConfig().exclude):
        weight: Any = denoiser.module.get_submodule(path).weight
        key = denoiser.file_key(path)
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=source) * 0.01
        tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=source) * 0.01
    return tensors


def main(rounds: int = 6) -> None:
    torch.set_num_threads(1)
    config = ModelConfig(base=str(ASSETS), device="cpu")
    base = open_base(config)
    studio = Studio(denoiser=base.load_denoiser(config, "float32"), family=base.family, encoders=base.load_encoders())
    files = {f"lora {n}": random_lora(studio.denoiser, n) for n in range(2)}
    loras = tuple(LoraFile(label=name, digest=name, path=Path(name)) for name in files)
    axes = Axes(
        loras=loras, base=False, strengths=(1.0,), prompts=PROMPTS, negative="", seeds=SEEDS,
        guidance=(GuidanceConfig(scale=4.0),),
    )  # fmt: skip
    how = Rendering(size=(SIDE, SIDE), steps=STEPS, sampler="euler", scheduler="normal", model="demo")
    folder = Path(tempfile.mkdtemp())
    shots = plan_shots(axes, [how], folder)
    geometry = Geometry(original=(SIDE, SIDE), resized=(SIDE, SIDE), crop_left=0, crop_top=0, target=(SIDE, SIDE))
    texts = studio.encoders.text.encode([PROMPTS[0], ""])
    positive, negative = (base.family.condition([text], [geometry], 1.0) for text in texts)
    factor = studio.encoders.image.factor
    shape = (base.family.latent_space.channels, SIDE // factor, SIDE // factor)
    settings = SampleSettings(steps=STEPS, sampler="euler", scheduler="normal", guidance=CFG(4.0))

    def bare() -> None:
        for shot in shots:
            noise = start_noise(shape, shot.seed, studio.device)
            latents = sample(studio.denoiser, noise, positive, negative, settings)
            studio.encoders.image.decode(base.family.latent_space.to_raw(latents))

    def swept() -> None:
        for _ in render(shots, studio, axes, lambda path: files[path.name], lambda done, total: None):
            pass

    try:
        times = interleaved({"sweep": swept, "bare": bare}, rounds, clock=time.process_time)
    finally:
        shutil.rmtree(folder)
    report(
        "sweep",
        {
            "cells": len(shots),
            "modules per LoRA": len(files["lora 0"]) // 2,
            "seconds per bare picture": min(times["bare"]) / len(shots),
            "sweep / bare (aim <= 1.05)": ratio(times["sweep"], times["bare"]),
            "bare / bare, halves of one series (noise)": ratio(times["bare"][1::2], times["bare"][::2]),
        },
    )


if __name__ == "__main__":
    main()
