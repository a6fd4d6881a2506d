"""Scheduled sampling: noisy latents that the network has made itself from a higher noise level, as in sampling.

Training shows the network latents with fresh noise, sampling what it made of them in the steps before. With a rollout (SimpleTuner's
scheduled sampling; exposure bias, arXiv 2308.15321) it is trained on the latter. B batch, C channels, H W latent sides.
"""

import torch
from torch import Tensor

from ..types import Conditioning
from .denoiser import Denoiser
from .objectives import TRAIN_TIMESTEPS, Objective, expand


def offset(strategy: str, most: int, share: float) -> int:
    """How many timesteps earlier a rollout begins, 0 to `most`, for a number in [0, 1): as likely each (uniform), mostly small ones
    (biased_early: the square) or mostly large ones (biased_late: 1 - the square)."""
    if strategy == "uniform":
        return min(int(share * (most + 1)), most)
    return round((share**2 if strategy == "biased_early" else 1 - share**2) * most)


def earlier(objective: Objective, sigma_B: Tensor, steps_B: Tensor) -> Tensor:
    """The noise levels (B,) this many thousandths of the schedule before others, at most the highest."""
    share_B = steps_B / TRAIN_TIMESTEPS
    if objective.name == "flow":
        return (sigma_B + share_B.to(sigma_B)).clamp(max=1.0)
    table = objective.sigmas.to(sigma_B.device)
    place_B = torch.searchsorted(table, sigma_B.to(table)) + (share_B * len(table)).round().long().to(sigma_B.device)
    found_B = table[place_B.clamp(max=len(table) - 1)].to(sigma_B)
    return torch.where(steps_B.to(sigma_B.device) > 0, found_B, sigma_B)


@torch.no_grad()
def rolled(
    denoiser: Denoiser,
    latents_BCHW: Tensor,
    noise_BCHW: Tensor,
    sigma_B: Tensor,
    steps_B: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """Noisy latents (B, C, H, W) at the levels `sigma_B` that the network has made in `max(steps_B)` Euler steps of latents that were
    noised `steps_B` timesteps earlier. A sample with 0 is noised as usual."""
    objective, count = denoiser.objective, int(steps_B.max())
    first_B = earlier(objective, sigma_B, steps_B)
    noisy = objective.add_noise(latents_BCHW, noise_BCHW, first_B)
    for number in range(count):
        level_B = first_B + (sigma_B - first_B) * (number / count)
        denoised = objective.to_denoised(noisy, denoiser.predict(noisy, level_B, conditioning), level_B)
        noisy = noisy + (noisy - denoised) / expand(level_B, noisy) * expand((sigma_B - first_B) / count, noisy)
    return noisy
