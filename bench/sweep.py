"""What a sweep costs beside sampling: seconds of `render` / seconds that it spends inside `sample` and the decoder.

Both of the same run, so that a slow moment hits both and other jobs hardly count.

The demo base of two blocks (bench/two_blocks), two LoRAs of rank 16 on attention and feed-forward layers, three seeds each, 20 steps of
Euler with CFG. In the sweep's time: laying each LoRA over the base and taking it off, encoding prompts, writing lossless
PNG files with their recipes. Aim: at most 1.05. Processor time of one thread.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import GuidanceConfig, ModelConfig, NetworkConfig
from lora_loom.trainer.diffusion.denoiser import Denoiser
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.sweep import cells as sweep_module
from lora_loom.trainer.sweep.cells import Axes, CellRenderer, Rendering, SweptLora, plan_cells, render

from .common import report, two_blocks

PROMPTS, SEEDS, SIDE, STEPS, RANK = ("a red circle on a meadow",), (0, 1, 2), 128, 20, 16


class Clock:
    """Adds up the seconds that calls take."""

    seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds += time.process_time() - started

        return timed


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
    config = ModelConfig(base=str(two_blocks()), device="cpu")
    base = open_base(config)
    renderer = CellRenderer(
        denoiser=base.load_denoiser(config, "float32"), family=base.family, encoders=base.load_encoders()
    )
    files = {f"lora {n}": random_lora(renderer.denoiser, n) for n in range(2)}
    loras = tuple(SweptLora(label=name, digest=name, path=Path(name)) for name in files)
    axes = Axes(
        loras=loras, base=False, strengths=(1.0,), prompts=PROMPTS, negative="", seeds=SEEDS,
        guidance=(GuidanceConfig(scale=4.0),),
    )  # fmt: skip
    how = Rendering(size=(SIDE, SIDE), steps=STEPS, sampler="euler", scheduler="normal", model="demo")
    folder = Path(tempfile.mkdtemp())
    cells = plan_cells(axes, [how], folder)
    inside = Clock()
    sweep_module.sample = inside.around(sweep_module.sample)
    renderer.encoders.image.decode = inside.around(renderer.encoders.image.decode)  # type: ignore[method-assign]
    ratios, cells = [], []
    try:
        for turn in range(rounds + 1):
            inside.seconds, started = 0.0, time.process_time()
            for _ in render(cells, renderer, axes, lambda path: files[path.name], lambda done, total: None):
                pass
            if turn:  # the first one also warms up
                ratios.append((time.process_time() - started) / inside.seconds)
                cells.append(inside.seconds / len(cells))
    finally:
        shutil.rmtree(folder)
    report(
        "sweep",
        {
            "cells": len(cells),
            "modules per LoRA": len(files["lora 0"]) // 2,
            "seconds of sampling and decoding per cell": statistics.median(cells),
            "sweep / its own sampling and decoding (aim <= 1.05)": statistics.median(ratios),
            "largest of all rounds": max(ratios),
        },
    )


if __name__ == "__main__":
    main()
