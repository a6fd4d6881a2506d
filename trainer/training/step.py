"""One training step as a pure function: a batch in, one loss per sample out. B batch, C channels, H W latent sides."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.guided_loss import guided_pair
from ..diffusion.loss import (
    debiased_weight,
    draw_noise,
    element_loss,
    huber_deltas,
    min_snr_weight,
    multires_noise,
    per_sample,
    v_scale_weight,
)
from ..diffusion.rollout import offset, rolled
from ..diffusion.timesteps import NoiseLevels
from ..diffusion.token_routing import routing
from ..seeding import StepKey, generator, uniform
from ..types import Batch, Route

Switch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """How often and how far the noisy latents are made by the network itself."""

    most: int = 0
    """Most timesteps, thousandths of the schedule, that they begin earlier; 0: never."""
    probability: float = 1.0
    ramp_steps: int = 0
    """Steps over which the probability rises from 0."""
    strategy: str = "uniform"

    def offsets(self, size: int, place: StepKey) -> list[int]:
        """How many timesteps earlier each of `size` samples begins: a function of the place alone."""
        risen = min(1.0, place.step / self.ramp_steps) if self.ramp_steps else 1.0
        keys = [(place.seed, place.step, place.micro_batch, slot) for slot in range(size)]
        return [
            offset(self.strategy, self.most, uniform(seed, "rollout", *key))
            if uniform(seed, "rolled out", *key) < risen * self.probability
            else 0
            for seed, *key in keys
        ]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the loss of a batch is computed: distribution of the noise levels, kind of loss, weights and masks."""

    noise_levels: NoiseLevels
    kind: str = "mse"
    huber_delta: float = 0.1
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0
    multires_iterations: int = 0
    multires_discount: float = 0.3
    perturbation: float = 0.0
    """Strength of noise in the noisy latents that the target does not know of."""
    soft_min_snr: bool = False
    debiased: bool = False
    scale_v: bool = False
    huber_schedule: str = "constant"
    normalised_masks: bool = True
    unmasked_probability: float = 0.0
    unmasked_weight: float = 0.0
    spread: bool = False
    """The noise levels of an image walk evenly through the law, by `Batch.shares`; else every one is drawn for itself."""
    guided: str = "off"
    """Form of the guided loss, a name in `choices.GUIDED_LOSSES`."""
    guided_scale: float = 4.0
    rollout: Rollout = field(default_factory=Rollout)
    routes: tuple[Route, ...] = ()
    """Blocks that some of the image's tokens pass by in the forward pass of the usual loss."""


def train_step(
    denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey, without_adapter: Switch = nullcontext
) -> Tensor:
    """Weighted loss of each sample, (B,). No side effects but the graph.

    `without_adapter` turns the network into the base for a while; it is used where a sample's target is the prediction of the base.
    """
    noise_BCHW, sigma_B = draw(denoiser, batch, settings, place)
    noisy_BCHW = noisy_latents(denoiser, batch, noise_BCHW, sigma_B, settings, place)
    batch = replace(batch, mask_B1HW=partly_unmasked(batch.mask_B1HW, settings, place))
    by_base_BCHW = None
    if batch.by_base_B is not None:
        with without_adapter(), torch.no_grad():
            by_base_BCHW = denoiser.predict(noisy_BCHW, sigma_B, batch.conditioning)
    with routing(denoiser.module, settings.routes, place):
        loss_B = sample_loss(denoiser, batch, noise_BCHW, sigma_B, settings, by_base_BCHW, noisy_BCHW)
    return loss_B * batch.weight_B


def noisy_latents(
    denoiser: Denoiser, batch: Batch, noise_BCHW: Tensor, sigma_B: Tensor, settings: LossSettings, place: StepKey
) -> Tensor:
    """What the network sees at these noise levels, (B, C, H, W): with more noise than the target knows of, or made by itself."""
    input_BCHW = perturbed(noise_BCHW, settings.perturbation, place)
    if settings.rollout.most and any(offsets := settings.rollout.offsets(batch.size, place)):
        steps_B = torch.tensor(offsets)
        return rolled(denoiser, batch.latents_BCHW, input_BCHW, sigma_B, steps_B, batch.conditioning)
    return denoiser.objective.add_noise(batch.latents_BCHW, input_BCHW, sigma_B)


def preservation_loss(
    denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey, without_adapter: Switch = nullcontext
) -> Tensor:
    """Weighted loss of the samples that are held to the base's prediction, (S,), of a batch that has some.

    L = w |f(x_t, t, c') - f_0(x_t, t, c')|^2: f is the network with the adapter, f_0 the same network with the adapter off and
    without gradient, c' the caption without the trigger, x_t the noisy latents that the usual loss sees. With class images it is the prior
    preservation of DreamBooth (arXiv 2208.12242, eq. 2) with the base's prediction as its target; on the training images
    themselves, ai-toolkit's differential output preservation. It is a pass of its own, so that its activations never lie in memory
    together with those of the usual loss. Masks do not apply: the whole image is held.
    """
    kept = batch.preserved
    assert kept is not None
    noise_BCHW, sigma_B = draw(denoiser, batch, settings, place)
    slots = list(kept.slots)
    noisy_SCHW = noisy_latents(denoiser, batch, noise_BCHW, sigma_B, settings, place)[slots]
    part = Batch(
        latents_BCHW=batch.latents_BCHW[slots],
        conditioning=kept.conditioning,
        weight_B=kept.weight_S,
        mask_B1HW=None,
        names=tuple(batch.names[slot] for slot in slots),
        by_base_B=torch.ones(len(slots), dtype=torch.bool, device=sigma_B.device),
    )
    with without_adapter(), torch.no_grad():
        by_base_SCHW = denoiser.predict(noisy_SCHW, sigma_B[slots], part.conditioning)
    loss_S = sample_loss(denoiser, part, noise_BCHW[slots], sigma_B[slots], settings, by_base_SCHW, noisy_SCHW)
    return loss_S * part.weight_B


def slider_loss(
    denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey, without_adapter: Switch = nullcontext
) -> Callable[[float], Tensor]:
    """The loss of a slider of prompts as a function of its sign, +1 or -1: the adapter's strength while it is computed and differentiated.

    L(s) = |f_s(x_t, c) - (f_0(x_t, c) + s k (f_0(x_t, c+) - f_0(x_t, c-)))|^2, (B,), weighted: f_s is the network with the adapter
    at strength s, f_0 the base, c the caption, c+ and c- the prompts, k the scale (Concept Sliders, arXiv 2311.12092, eq. 7, with
    both directions trained). The three predictions of the base are made here, once for both signs and without gradient.
    """
    slider = batch.slider
    assert slider is not None
    noise_BCHW, sigma_B = draw(denoiser, batch, settings, place)
    noisy_BCHW = noisy_latents(denoiser, batch, noise_BCHW, sigma_B, replace(settings, rollout=Rollout()), place)
    with without_adapter(), torch.no_grad():
        conditionings = (batch.conditioning, slider.positive, slider.negative)
        own, positive, negative = (denoiser.predict(noisy_BCHW, sigma_B, one) for one in conditionings)
    everywhere = torch.ones(batch.size, dtype=torch.bool, device=sigma_B.device)
    part = replace(batch, mask_B1HW=None, by_base_B=everywhere, unconditional=None, guided_B=None)

    def loss_at(sign: float) -> Tensor:
        target = own + sign * slider.scale * (positive - negative)
        return sample_loss(denoiser, part, noise_BCHW, sigma_B, settings, target, noisy_BCHW) * batch.weight_B

    return loss_at


def perturbed(noise_BCHW: Tensor, strength: float, place: StepKey) -> Tensor:
    """The noise that goes into the noisy latents: that of the target, and more if `strength` is not 0 (arXiv 2301.11706)."""
    if not strength:
        return noise_BCHW
    more = [
        torch.randn(noise.shape, generator=generator(place.seed, "perturbation", place.step, place.micro_batch, slot))
        for slot, noise in enumerate(noise_BCHW)
    ]
    return noise_BCHW + strength * torch.stack(more).to(noise_BCHW)


def partly_unmasked(mask_B1HW: Tensor | None, settings: LossSettings, place: StepKey) -> Tensor | None:
    """The mask with its lowest weight, and all ones for the samples that ignore it in this step."""
    if mask_B1HW is None or not (settings.unmasked_probability or settings.unmasked_weight):
        return mask_B1HW
    draws = (uniform(place.seed, "unmasked", place.step, place.micro_batch, slot) for slot in range(len(mask_B1HW)))
    ignored = torch.tensor([draw < settings.unmasked_probability for draw in draws], device=mask_B1HW.device)
    lowest = mask_B1HW.clamp_min(settings.unmasked_weight)
    return torch.where(ignored.reshape(-1, 1, 1, 1), torch.ones_like(lowest), lowest)


def draw(denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey) -> tuple[Tensor, Tensor]:
    """Noise (B, C, H, W) and noise levels (B,): functions of the place and the slot in the batch alone."""
    latents = batch.latents_BCHW
    height, width = latents.shape[-2:]
    noises, sigmas = [], []
    for slot in range(batch.size):
        key = (place.step, place.micro_batch, slot)
        noise = draw_noise(tuple(latents.shape[1:]), generator(place.seed, "noise", *key), settings.noise_offset)
        if settings.multires_iterations:
            source = generator(place.seed, "multires", *key)
            noise = multires_noise(noise, settings.multires_iterations, settings.multires_discount, source)
        noises.append(noise)
        levels = settings.noise_levels
        if batch.ranges and (limits := batch.ranges[slot]):
            levels = replace(levels, low=limits[0], high=limits[1])
        if settings.spread:
            sigmas.append(levels.at(denoiser.objective, height, width, batch.shares[slot]))
        else:
            source = generator(place.seed, "sigma", *key)
            sigmas.append(levels.draw(denoiser.objective, height, width, source))
    return torch.stack(noises).to(latents), torch.stack(sigmas).to(latents)


def sample_loss(
    denoiser: Denoiser,
    batch: Batch,
    noise_BCHW: Tensor,
    sigma_B: Tensor,
    settings: LossSettings,
    by_base_BCHW: Tensor | None = None,
    noisy_BCHW: Tensor | None = None,
) -> Tensor:
    """Unweighted loss of each sample for given noise and noise levels, (B,). The network sees `noisy_BCHW`, or latents with that noise.

    `by_base_BCHW`, the base's own prediction, is the target where `batch.by_base_B` says so (SimpleTuner's parent-student
    regularisation, sd-scripts' differential output preservation).
    """
    objective = denoiser.objective
    if noisy_BCHW is None:
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
    delta = huber_deltas(settings.huber_schedule, settings.huber_delta, objective, sigma_B)
    if isinstance(delta, Tensor):
        delta = delta.reshape(-1, *[1] * (target_BCHW.ndim - 1))
    loss = element_loss(predicted_BCHW, target_BCHW, settings.kind, delta)
    loss_B = per_sample(loss, batch.mask_B1HW, normalised=settings.normalised_masks)
    if settings.min_snr_gamma:
        loss_B = loss_B * min_snr_weight(objective, sigma_B, settings.min_snr_gamma, soft=settings.soft_min_snr)
    if settings.debiased:
        loss_B = loss_B * debiased_weight(objective, sigma_B)
    return loss_B * v_scale_weight(objective, sigma_B) if settings.scale_v else loss_B
