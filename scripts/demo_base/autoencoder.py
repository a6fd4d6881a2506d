"""Stage 1: a TAESD-architecture autoencoder (8x, 16 channels) whose latents have SD3's scale and shift by training."""

import time
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .pictures import autoencoder_pool, scenes_pool

LATENT_SHIFT, LATENT_SCALE = 0.0609, 1.5305  # SD3's normalisation: model space = (z - shift) * scale


def new_autoencoder() -> AutoencoderTiny:
    """He-normal convolutions; each residual branch starts at a tenth, so that the untrained network is near linear."""
    model = AutoencoderTiny(latent_channels=16, scaling_factor=LATENT_SCALE, shift_factor=LATENT_SHIFT)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv.4.weight"):
                parameter.mul_(0.1)
        for last in (model.encoder.layers[-1], model.decoder.layers[-1]):
            last.weight.mul_(0.3)
        model.decoder.layers[-1].bias.fill_(0.5)
    return model


def losses(model: AutoencoderTiny, pixels: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Reconstruction, and the distance of the latents' moments from mean 0 and variance 1 in model space."""
    raw = model.encoder(pixels)
    latents = (raw - LATENT_SHIFT) * LATENT_SCALE
    noisy = latents + noise * torch.randn_like(latents)
    restored = model.decoder(noisy / LATENT_SCALE + LATENT_SHIFT)
    mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
    moments = mean.square().mean() + (variance.clamp_min(1e-4).log()).square().mean()
    return _reconstruction(restored - pixels), moments


def _reconstruction(difference: Tensor) -> Tensor:
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + edges


def random_crops(pool: Tensor, batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Float crops in [-1, 1], channels last."""
    rows = torch.randint(len(pool), (batch,), generator=generator).tolist()
    corners = torch.randint(pool.shape[-1] - side + 1, (batch, 2), generator=generator).tolist()
    crops = [pool[row, :, y : y + side, x : x + side] for row, (y, x) in zip(rows, corners, strict=True)]
    return (torch.stack(crops).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train(directory: Path, *, steps: int, batch: int, side: int, learning_rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = autoencoder_pool(4000, seed)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    started, smooth = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # twice as fast as fp32 where the CPU has bf16 arithmetic
            reconstruction, moments = losses(model, random_crops(pool, batch, side, generator), noise=0.1)
        (reconstruction + 0.02 * moments).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        smooth = reconstruction.item() if step == 1 else 0.98 * smooth + 0.02 * reconstruction.item()
        if step % 50 == 0:
            print(f"{step} loss {smooth:.4f} moments {moments.item():.4f} {(time.monotonic() - started) / step:.2f} s/step", flush=True)  # fmt: skip
        if step % 500 == 0 or step == steps:
            model.save_pretrained(directory)


def sharpen(directory: Path, *, steps: int, batch: int, side: int, learning_rate: float, seed: int) -> None:
    """Train the decoder alone, on scenes: the latents, and with them a denoiser that learnt them, stay as they are."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = scenes_pool(3000, seed)
    model = AutoencoderTiny.from_pretrained(directory).to(memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    smooth = 0.0
    for step in range(1, steps + 1):
        pixels = random_crops(pool, batch, side, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                raw = model.encoder(pixels)
            restored = model.decoder(raw + 0.05 / LATENT_SCALE * torch.randn_like(raw))
            loss = _reconstruction(restored - pixels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        smooth = loss.item() if step == 1 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} loss {smooth:.4f}", flush=True)
    model.save_pretrained(directory)
