"""Sampling schedules and integrators over any denoiser: `denoise(noisy, sigma) -> x0`.

The schedules are ComfyUI's (same names, same numbers), so that a picture made here can be made there. Euler, Heun and
DPM++ 2M follow k-diffusion (Karras et al., arXiv 2206.00364; Lu et al., arXiv 2211.01095); DDIM is arXiv 2010.02502.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .objectives import Objective

Denoise = Callable[[Tensor, float], Tensor]
Progress = Callable[[int, int], None]


def schedule(objective: Objective, name: str, steps: int) -> list[float]:
    """steps + 1 falling noise levels, the last one 0. Raises ValueError on an unknown name."""
    if name not in SCHEDULES:
        raise ValueError(f"scheduler {name!r}: known are {', '.join(SCHEDULES)}")
    return [*SCHEDULES[name](objective, steps), 0.0]


def _evenly_timed(objective: Objective, steps: int, *, leave_out_last: bool) -> list[float]:
    first, last = (objective.timestep(objective.sigmas[[i]]).item() for i in (-1, 0))
    times = torch.linspace(first, last, steps + 1)[:-1] if leave_out_last else torch.linspace(first, last, steps)
    return [float(sigma) for sigma in objective.sigma_of(times)]


def _normal(objective: Objective, steps: int) -> list[float]:
    return _evenly_timed(objective, steps, leave_out_last=False)


def _sgm_uniform(objective: Objective, steps: int) -> list[float]:
    return _evenly_timed(objective, steps, leave_out_last=True)


def _simple(objective: Objective, steps: int) -> list[float]:
    sigmas = objective.sigmas
    stride = len(sigmas) / steps
    return [float(sigmas[-(1 + int(step * stride))]) for step in range(steps)]


def _karras(objective: Objective, steps: int, rho: float = 7.0) -> list[float]:
    low, high = (float(objective.sigmas[i]) ** (1 / rho) for i in (0, -1))
    return [(high + share * (low - high)) ** rho for share in torch.linspace(0, 1, steps).tolist()]


SCHEDULES: dict[str, Callable[[Objective, int], list[float]]] = {
    "normal": _normal,
    "simple": _simple,
    "karras": _karras,
    "sgm_uniform": _sgm_uniform,
}


def _slope(noisy: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability flow."""
    return (noisy - denoised) / sigma


def euler(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        noisy = noisy + _slope(noisy, denoise(noisy, sigma), sigma) * (following - sigma)
        progress(step + 1, len(sigmas) - 1)
    return noisy


def heun(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = _slope(noisy, denoise(noisy, sigma), sigma)
        guess = noisy + slope * (following - sigma)
        if following > 0:
            slope = (slope + _slope(guess, denoise(guess, following), following)) / 2
        noisy = noisy + slope * (following - sigma)
        progress(step + 1, len(sigmas) - 1)
    return noisy


def dpmpp_2m(denoise: Denoise, noisy: Tensor, sigmas: list[float], progress: Progress) -> Tensor:
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


SAMPLERS: dict[str, Callable[[Denoise, Tensor, list[float], Progress], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ddim": ddim,
}
