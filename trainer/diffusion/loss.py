"""Losses: one number per sample, with weights and masks in the open. B batch, C channels, H W latent rows, columns."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..choices import LOSSES
from .objectives import Objective


def element_loss(prediction: Tensor, target: Tensor, kind: str = "mse", delta: float = 0.1) -> Tensor:
    """The loss of every element, fp32, in the shape of `prediction`. `kind` is a name in `choices.LOSSES`.

    Raises ValueError for another name.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss kind {kind!r}: known are {', '.join(LOSSES)}")
    loss: Tensor = LOSSES[kind].load()(prediction.float(), target.float(), delta)
    return loss


def mse(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Squared difference; `delta` has no part in it."""
    return F.mse_loss(prediction, target, reduction="none")


def huber(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """Half the squared difference up to `delta`, linear beyond it."""
    return F.huber_loss(prediction, target, reduction="none", delta=delta)


def smooth_l1(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """The loss is `huber` divided by delta."""
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=delta)


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


def min_snr_weight(objective: Objective, sigma_B: Tensor, gamma: float) -> Tensor:
    """The weight is min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v (arXiv 2303.09556), shape (B,). SNR is kept >= 1e-8."""
    if objective.name == "flow":
        raise ValueError("min-SNR weights are defined for epsilon and v models only")
    snr_B = objective.snr(sigma_B).clamp_min(1e-8)
    return snr_B.clamp_max(gamma) / (snr_B + 1 if objective.name == "v" else snr_B)


def draw_noise(shape: tuple[int, ...], generator: Generator, offset: float = 0.0) -> Tensor:
    """Normal noise of one sample (C, ...) plus `offset` times one normal number per channel, on the CPU.

    On the CPU also for a GPU run: the numbers then do not depend on the device, and latents are small.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator)
    return noise
