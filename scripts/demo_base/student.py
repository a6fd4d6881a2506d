"""A CFG-distilled student of the demo base: it predicts at guidance 1 what the base makes of CFG 4 (arXiv 2210.03142, without the
guidance input, as distilled models are released).

Only for experiments on distilled models (bench/guided_loss.py): it is not shipped.
"""

import copy
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_loom.trainer.families.sd3 import FAMILY

from .denoiser import draw_sigma, pixels_of
from .pack import load
from .pictures import training_scene

EMPTY_SHARE = 0.1
"""Share of the captions that are empty: there the student predicts what the base does."""


def conditioning(text: Any, captions: list[str]) -> Any:
    """What the network is fed for these captions."""
    return FAMILY.condition(text.encode(captions), [], 1.0)


@torch.no_grad()
def guided(denoiser: Any, text: Any, noisy: Tensor, sigma: Tensor, captions: list[str], scale: float) -> Tensor:
    """u + s (c - u) of a network; u itself for an empty caption."""
    with_text = denoiser.predict(noisy, sigma, conditioning(text, captions))
    without = denoiser.predict(noisy, sigma, conditioning(text, [""] * len(captions)))
    prediction: Tensor = without + scale * (with_text - without)
    return prediction


@torch.no_grad()
def scene_latents(codec: Any, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """(count, 16, 16, 16) model-space latents of training scenes, and their captions."""
    rng = random.Random(seed)
    scenes = [training_scene(rng) for _ in range(count)]
    latents = [
        FAMILY.latent_space.to_model(codec.encode(torch.stack([pixels_of(one.draw()) for one in scenes[i : i + 16]])))
        for i in range(0, count, 16)
    ]
    return torch.cat(latents), [scene.caption for scene in scenes]


def distil(
    assets: Path,
    directory: Path,
    *,
    scale: float = 4.0,
    steps: int = 500,
    batch: int = 16,
    pool: int = 480,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> float:
    """Write the student as a diffusers folder; returns its last loss, smoothed, over the mean square of what guidance changes."""
    denoiser, encoders = load(assets)
    teacher = copy.copy(denoiser)
    teacher.module = copy.deepcopy(denoiser.module)
    latents, captions = scene_latents(encoders.image, pool, seed)
    network = denoiser.module.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    objective, started, share = FAMILY.variants["sd3"].objective, time.monotonic(), 1.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        clean, sigma = latents[rows], draw_sigma(batch, generator)
        noisy = objective.add_noise(clean, torch.randn(clean.shape, generator=generator), sigma)
        said = ["" if rng.random() < EMPTY_SHARE else captions[row] for row in rows.tolist()]
        target = guided(teacher, encoders.text, noisy, sigma, said, scale)
        predicted = denoiser.predict(noisy, sigma, conditioning(encoders.text, said))
        loss = F.mse_loss(predicted, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        changed = F.mse_loss(target, guided(teacher, encoders.text, noisy, sigma, said, 1.0))
        share = 0.95 * share + 0.05 * (loss.item() / max(changed.item(), 1e-6))
        if step % 50 == 0:
            print(f"{step} loss / change {share:.3f} {(time.monotonic() - started) / step:.2f} s/step", flush=True)
    shutil.copytree(assets, directory, dirs_exist_ok=True)
    network.save_pretrained(directory / "transformer")
    return share
