"""One training step as a pure function: a batch in, one loss per sample out. B batch, C channels, H W latent sides."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.guided_loss import guided_pair
from ..diffusion.loss import draw_noise, element_loss, min_snr_weight, per_sample
from ..diffusion.timesteps import NoiseLevels
from ..seeding import StepKey, generator
from ..types import Batch

Switch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the loss of a batch is computed: distribution of the noise levels, kind of loss, weights and masks."""

    noise_levels: NoiseLevels
    kind: str = "mse"
    huber_delta: float = 0.1
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    normalised_masks: bool = True
    spread: bool = False
    """The noise levels of an image walk evenly through the law, by `Batch.shares`; else every one is drawn for itself."""
    guided: str = "off"
    """Form of the guided loss, a name in `choices.GUIDED_LOSSES`."""
    guided_scale: float = 4.0


def train_step(
    denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey, without_adapter: Switch = nullcontext
) -> Tensor:
    """Weighted loss of each sample, (B,). No side effects but the graph.

    `without_adapter` turns the network into the base for a while; it is used where a sample's target is the prediction of the base.
    """
    noise_BCHW, sigma_B = draw(denoiser, batch, settings, place)
    by_base_BCHW = None
    if batch.by_base_B is not None:
        with without_adapter(), torch.no_grad():
            noisy_BCHW = denoiser.objective.add_noise(batch.latents_BCHW, noise_BCHW, sigma_B)
            by_base_BCHW = denoiser.predict(noisy_BCHW, sigma_B, batch.conditioning)
    return sample_loss(denoiser, batch, noise_BCHW, sigma_B, settings, by_base_BCHW) * batch.weight_B


def draw(denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey) -> tuple[Tensor, Tensor]:
    """Noise (B, C, H, W) and noise levels (B,): functions of the place and the slot in the batch alone."""
    latents = batch.latents_BCHW
    height, width = latents.shape[-2:]
    noises, sigmas = [], []
    for slot in range(batch.size):
        key = (place.step, place.micro_batch, slot)
        noises.append(draw_noise(tuple(latents.shape[1:]), generator(place.seed, "noise", *key), settings.noise_offset))
        if settings.spread:
            sigmas.append(settings.noise_levels.at(denoiser.objective, height, width, batch.shares[slot]))
        else:
            source = generator(place.seed, "sigma", *key)
            sigmas.append(settings.noise_levels.draw(denoiser.objective, height, width, source))
    return torch.stack(noises).to(latents), torch.stack(sigmas).to(latents)


def sample_loss(
    denoiser: Denoiser,
    batch: Batch,
    noise_BCHW: Tensor,
    sigma_B: Tensor,
    settings: LossSettings,
    by_base_BCHW: Tensor | None = None,
) -> Tensor:
    """Unweighted loss of each sample for given noise and noise levels, (B,).

    `by_base_BCHW`, the base's own prediction, is the target where `batch.by_base_B` says so (SimpleTuner's parent-student
    regularisation, sd-scripts' differential output preservation).
    """
    objective = denoiser.objective
    noisy_BCHW = objective.add_noise(batch.latents_BCHW, noise_BCHW, sigma_B)
    unconditional_BCHW = None
    if settings.guided != "off" and batch.unconditional is not None:
        with torch.no_grad():
            unconditional_BCHW = denoiser.predict(noisy_BCHW, sigma_B, batch.unconditional)
    predicted_BCHW = denoiser.predict(noisy_BCHW, sigma_B, batch.conditioning)
    target_BCHW = objective.target(batch.latents_BCHW, noise_BCHW, sigma_B)
    if by_base_BCHW is not None and batch.by_base_B is not None:
        chosen = batch.by_base_B.reshape(-1, *[1] * (target_BCHW.ndim - 1))
        target_BCHW = torch.where(chosen, by_base_BCHW.to(target_BCHW), target_BCHW)
    if unconditional_BCHW is not None and batch.guided_B is not None:
        pair = (predicted_BCHW, target_BCHW)
        guided = guided_pair(settings.guided, settings.guided_scale, *pair, unconditional_BCHW)
        chosen = batch.guided_B.reshape(-1, *[1] * (target_BCHW.ndim - 1))
        predicted_BCHW, target_BCHW = (torch.where(chosen, *one) for one in zip(guided, pair, strict=True))
    loss = element_loss(predicted_BCHW, target_BCHW, settings.kind, settings.huber_delta)
    loss_B = per_sample(loss, batch.mask_B1HW, normalised=settings.normalised_masks)
    if settings.min_snr_gamma:
        loss_B = loss_B * min_snr_weight(objective, sigma_B, settings.min_snr_gamma)
    return loss_B
