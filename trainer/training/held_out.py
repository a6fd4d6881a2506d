"""The validation loss: the same held-out images, noise levels and noise every time, so that only the adapter changes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..diffusion.denoiser import Denoiser
from ..diffusion.loss import draw_noise
from ..diffusion.timesteps import NoiseLevels
from ..seeding import generator
from ..types import Batch
from .step import LossSettings, sample_loss


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images set aside, and the places on the noise schedule they are measured at."""

    batches: Sequence[Batch]
    """One image each."""
    timesteps: int
    seed: int

    def positions(self) -> list[float]:
        """Evenly spread shares of the schedule, away from both ends: (i + 1/2) / n."""
        return [(i + 0.5) / self.timesteps for i in range(self.timesteps)]


@torch.no_grad()
def held_out_losses(
    denoiser: Denoiser, held_out: HeldOut, levels: NoiseLevels, should_stop: Callable[[], bool] = lambda: False
) -> list[list[float]]:
    """Unweighted squared error of every image (outer) at every noise level (inner); shorter if stopped before the end."""
    settings = LossSettings(noise_levels=levels)
    losses: list[list[float]] = []
    for number, batch in enumerate(held_out.batches):
        latents = batch.latents_BCHW
        height, width = latents.shape[-2:]
        row: list[float] = []
        for index, position in enumerate(held_out.positions()):
            if should_stop():
                return losses
            sigma_B = levels.sigma(denoiser.objective, height, width, torch.tensor([position])).to(latents)
            noise = draw_noise(tuple(latents.shape[1:]), generator(held_out.seed, "held out", number, index))
            row.append(sample_loss(denoiser, batch, noise.unsqueeze(0).to(latents), sigma_B, settings).item())
        losses.append(row)
    return losses


def held_out_loss(denoiser: Denoiser, held_out: HeldOut, levels: NoiseLevels) -> float:
    """Mean of `held_out_losses`; nan without images."""
    return mean_loss(held_out_losses(denoiser, held_out, levels))


def rounded(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """To the digits that fp32 has, for the record."""
    return [[float(f"{value:.7g}") for value in row] for row in losses]


def mean_loss(losses: Sequence[Sequence[float]]) -> float:
    values = [value for row in losses for value in row]
    return sum(values) / len(values) if values else float("nan")
