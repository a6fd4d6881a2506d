"""Sampling schedules and integrators over any denoiser: `denoise(noisy, sigma) -> x0`.

The schedules are ComfyUI's (same names, same numbers), so that an image made here can be made there. Euler, Heun and
DPM++ 2M follow k-diffusion (Karras et al., arXiv 2206.00364; Lu et al., arXiv 2211.01095); DDIM is arXiv 2010.02502.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..choices import SCHEDULERS
from ..types import Progress
from .objectives import Objective

Denoise = Callable[[Tensor, float], Tensor]


def schedule(objective: Objective, name: str, steps: int) -> list[float]:
    """Returns steps + 1 falling noise levels, the last one 0. `name` is one of `choices.SCHEDULERS`; raises ValueError for another."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r}: known are {', '.join(SCHEDULERS)}")
    return [*SCHEDULERS[name].load()(objective, steps), 0.0]


def _evenly_timed(objective: Objective, steps: int, *, leave_out_last: bool) -> list[float]:
    first, last = (objective.timestep(objective.sigmas[[i]]).item() for i in (-1, 0))
    times = torch.linspace(first, last, steps + 1)[:-1] if leave_out_last else torch.linspace(first, last, steps)
    return [float(sigma) for sigma in objective.sigma_of(times)]


def normal(objective: Objective, steps: int) -> list[float]:
    """Noise levels at evenly spaced timesteps, the lowest of the model included."""
    return _evenly_timed(objective, steps, leave_out_last=False)


def sgm_uniform(objective: Objective, steps: int) -> list[float]:
    """Returns the levels of `normal` for one step more, without the lowest noise level."""
    return _evenly_timed(objective, steps, leave_out_last=True)


def ddim_uniform(objective: Objective, steps: int) -> list[float]:
    """Every n-th entry of the model's table, counted from the second on; one or a few levels more than steps where these do not
    divide the table, as in ComfyUI."""
    sigmas = objective.sigmas
    return [float(sigma) for sigma in sigmas[1 :: max(len(sigmas) // steps, 1)].flip(0)]


def simple(objective: Objective, steps: int) -> list[float]:
    """Evenly spaced entries of the model's own table of noise levels."""
    sigmas = objective.sigmas
    stride = len(sigmas) / steps
    return [float(sigmas[-(1 + int(step * stride))]) for step in range(steps)]


def karras(objective: Objective, steps: int, rho: float = 7.0) -> list[float]:
    """Noise levels that are even in sigma ** (1 / rho) (arXiv 2206.00364, equation 5)."""
    low, high = (float(objective.sigmas[i]) ** (1 / rho) for i in (0, -1))
    return [(high + share * (low - high)) ** rho for share in torch.linspace(0, 1, steps).tolist()]


def _slope(noisy: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability flow."""
    return (noisy - denoised) / sigma


def euler(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    """Euler's method on the probability flow."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        noisy = noisy + _slope(noisy, denoise(noisy, sigma), sigma) * (following - sigma)
        progress(step + 1, len(sigmas) - 1)
    return noisy


def heun(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    """Heun's method: the mean of the slopes at both ends of a step (arXiv 2206.00364, algorithm 1 without churn)."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = _slope(noisy, denoise(noisy, sigma), sigma)
        guess = noisy + slope * (following - sigma)
        if following > 0:
            slope = (slope + _slope(guess, denoise(guess, following), following)) / 2
        noisy = noisy + slope * (following - sigma)
        progress(step + 1, len(sigmas) - 1)
    return noisy


def dpmpp_2m(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    """DPM-Solver++(2M): second order from the denoised latents of the step before (arXiv 2211.01095, algorithm 2)."""
    earlier: Tensor | None = None
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        estimate = denoised
        if earlier is not None and following > 0:
            ratio = math.log(sigmas[step - 1] / sigma) / math.log(sigma / following)
            estimate = (1 + 1 / (2 * ratio)) * denoised - (1 / (2 * ratio)) * earlier
        noisy = (following / sigma) * noisy + (1 - following / sigma) * estimate
        earlier = denoised
        progress(step + 1, len(sigmas) - 1)
    return noisy


def ddim(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    """Deterministic DDIM (eta 0): recombine x0 with the same noise. At equal noise levels it equals Euler."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        noisy = denoised + (following / sigma) * (noisy - denoised)
        progress(step + 1, len(sigmas) - 1)
    return noisy
