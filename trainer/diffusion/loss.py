"""Losses: one number per sample, with weights and masks in the open. B batch, C channels, H W latent rows, columns."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..choices import LOSSES
from .objectives import TRAIN_TIMESTEPS, Objective


def element_loss(prediction: Tensor, target: Tensor, kind: str = "mse", delta: float | Tensor = 0.1) -> Tensor:
    """The loss of every element, fp32, in the shape of `prediction`. `kind` is a name in `choices.LOSSES`; `delta` is one number, or
    one for each sample, (B, 1, …).

    Raises ValueError for another name.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss kind {kind!r}: known are {', '.join(LOSSES)}")
    loss: Tensor = LOSSES[kind].load()(prediction.float(), target.float(), delta)
    return loss


def mse(prediction: Tensor, target: Tensor, delta: float | Tensor) -> Tensor:
    """Squared difference; `delta` has no part in it."""
    return F.mse_loss(prediction, target, reduction="none")


def huber(prediction: Tensor, target: Tensor, delta: float | Tensor) -> Tensor:
    """Half the squared difference up to `delta`, linear beyond it."""
    if not isinstance(delta, Tensor):
        return F.huber_loss(prediction, target, reduction="none", delta=delta)
    error = (prediction - target).abs()
    return torch.where(error <= delta, error.square() / 2, delta * (error - delta / 2))


def smooth_l1(prediction: Tensor, target: Tensor, delta: float | Tensor) -> Tensor:
    """The loss is `huber` divided by delta."""
    if not isinstance(delta, Tensor):
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=delta)
    return huber(prediction, target, delta) / delta


def huber_deltas(schedule: str, delta: float, objective: Objective, sigma_B: Tensor) -> float | Tensor:
    """`delta` at these noise levels, (B,), or the number itself for a constant one (as in sd-scripts' `get_huber_threshold`).

    exponential: delta ** t, with t the share of the schedule; snr: (1 - delta) / (1 + sigma)^2 + delta.
    """
    if schedule == "exponential":
        share_B = sigma_B if objective.name == "flow" else objective.timestep(sigma_B) / TRAIN_TIMESTEPS
        return (share_B.float() * math.log(delta)).exp()
    if schedule == "snr":
        return (1 - delta) / (1 + sigma_B.float()).square() + delta
    return delta


def per_sample(loss: Tensor, mask_B1HW: Tensor | None = None, *, normalised: bool = True) -> Tensor:
    """Mean over everything but the batch, (B,).

    With a mask in [0, 1]: sum(loss * mask) over the mask's own weight if `normalised`, else over all elements (as
    sd-scripts and SimpleTuner do, which trains small masks weakly). An empty mask gives 0.
    """
    if mask_B1HW is None:
        return loss.flatten(1).mean(dim=1)
    mask = mask_B1HW.to(loss)
    if loss.ndim > mask.ndim:  # video-shaped latents (B, C, T, H, W)
        mask = mask.unsqueeze(2)
    mask = mask.expand_as(loss)
    if not normalised:
        return (loss * mask).flatten(1).mean(dim=1)
    return (loss * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1e-8)


def min_snr_weight(objective: Objective, sigma_B: Tensor, gamma: float, *, soft: bool = False) -> Tensor:
    """The weight is min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (arXiv 2303.09556), shape (B,). SNR is kept >= 1e-8.

    `soft`: SNR gamma / (SNR + gamma) takes the place of the minimum (arXiv 2401.11605, 3.3).
    """
    if objective.name == "flow":
        raise ValueError("min-SNR weights are defined for epsilon and v models only")
    snr_B = objective.snr(sigma_B).clamp_min(1e-8)
    clamped_B = snr_B * gamma / (snr_B + gamma) if soft else snr_B.clamp_max(gamma)
    return clamped_B / (snr_B + 1 if objective.name == "v" else snr_B)


def debiased_weight(objective: Objective, sigma_B: Tensor) -> Tensor:
    """The weight is 1 / sqrt(SNR) for epsilon, 1 / (SNR + 1) for v (arXiv 2310.08442), shape (B,). SNR is kept <= 1000."""
    snr_B = objective.snr(sigma_B).clamp(1e-8, 1000)
    return 1 / (snr_B + 1) if objective.name == "v" else snr_B.rsqrt()


def v_scale_weight(objective: Objective, sigma_B: Tensor) -> Tensor:
    """The weight SNR / (SNR + 1), (B,), with which the loss of v is that of epsilon."""
    snr_B = objective.snr(sigma_B)
    return snr_B / (snr_B + 1)


def multires_noise(noise: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """Noise of one sample (C, ..., H, W) with noise of lower resolutions added to it, scaled to a standard deviation of 1.

    The i-th is drawn at H / r^i by W / r^i with r uniform in [2, 4], enlarged and weighted by discount^i; none follows one of a
    single row or column ("Multi-Resolution Noise for Diffusion Model Training", 2023; as sd-scripts' `pyramid_noise_like`).
    """
    height, width = noise.shape[-2:]
    for i in range(iterations):
        ratio = (2 + 2 * torch.rand((), generator=generator).item()) ** i
        rows, columns = max(int(height / ratio), 1), max(int(width / ratio), 1)
        coarse = torch.randn(*noise.shape[:-2], rows, columns, generator=generator)
        enlarged = F.interpolate(coarse.reshape(1, -1, rows, columns), size=(height, width), mode="bilinear")
        noise = noise + enlarged.reshape(noise.shape) * discount**i
        if 1 in (rows, columns):
            break
    return noise / noise.std()


def draw_noise(shape: tuple[int, ...], generator: Generator, offset: float = 0.0) -> Tensor:
    """Normal noise of one sample (C, ...) plus `offset` times one normal number per channel, on the CPU.

    On the CPU also for a GPU run: the numbers then do not depend on the device, and latents are small.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
    return noise
