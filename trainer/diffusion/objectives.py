"""What a network predicts: one interface that the loss and the samplers share, so that they cannot drift apart.

Noise convention (k-diffusion, ComfyUI): `sigma` is the noise level. Epsilon and v models noise by x0 + sigma * noise
with sigma = sqrt((1 - abar) / abar); flow models by (1 - sigma) * x0 + sigma * noise with sigma in [0, 1].
Suffixes: B batch, C channels, H W latent rows and columns; tensors without a suffix have any shape with B first.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


def expand(sigma_B: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, 1, ...) with as many dimensions as `like`."""
    return sigma_B.reshape(-1, *[1] * (like.ndim - 1)).to(like)


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Static shift of flow noise levels (arXiv 2403.03206, 5.3.2): above 1 towards noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class Objective(Protocol):
    """What a network predicts, and how latents are noised for it."""

    @property
    def name(self) -> str:
        """flow, epsilon or v."""
        ...

    @property
    def sigmas(self) -> Tensor:
        """The table of noise levels that sampling schedules are cut from, (levels,), rising."""
        ...

    def timestep(self, sigma_B: Tensor) -> Tensor:
        """Returns the clock, (B,), that runs evenly along the sampling schedule; `sigma_of` turns it back."""
        ...

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """The noise level at a timestep: the inverse of `timestep`."""
        ...

    def sigma_at(self, u_B: Tensor) -> Tensor:
        """Noise level at a share u of the training schedule: 0 = clean, 1 = pure noise."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        """Latents with noise of this level, before `network_input`."""
        ...

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """What sampling starts from at the highest noise level, as ComfyUI scales it."""
        ...

    def target(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        """What the network should predict."""
        ...

    def to_denoised(self, noisy: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
        """The clean latents that a prediction stands for."""
        ...

    def network_input(self, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        """The noisy latents as the network expects them."""
        ...

    def snr(self, sigma_B: Tensor) -> Tensor:
        """Signal-to-noise ratio (power) at a noise level."""
        ...


@dataclass(frozen=True)
class FlowMatching:
    """Rectified flow: the network predicts the velocity noise - x0 (arXiv 2403.03206)."""

    shift: float = 1.0
    """Shift of the sampling schedule; training draws its own (timesteps.py)."""
    levels: int = TRAIN_TIMESTEPS
    """Length of the table of noise levels."""
    name: str = "flow"

    @property
    def sigmas(self) -> Tensor:
        return shift_sigma(torch.arange(1, self.levels + 1) / self.levels, self.shift)

    def timestep(self, sigma_B: Tensor) -> Tensor:
        return sigma_B * TRAIN_TIMESTEPS

    def sigma_of(self, timestep: Tensor) -> Tensor:
        return shift_sigma(timestep / TRAIN_TIMESTEPS, self.shift)

    def sigma_at(self, u_B: Tensor) -> Tensor:
        return u_B

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        sigma = expand(sigma_B, latents)
        return (1 - sigma) * latents + sigma * noise

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        return sigma * noise

    def target(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        return noise - latents

    def to_denoised(self, noisy: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
        return noisy - expand(sigma_B, noisy) * prediction

    def network_input(self, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        return noisy

    def snr(self, sigma_B: Tensor) -> Tensor:
        return ((1 - sigma_B) / sigma_B.clamp_min(1e-8)).square()


@dataclass(frozen=True)
class _Discrete:
    """A table of 1000 noise levels from scaled-linear betas (arXiv 2112.10752): what SD1, SD2 and SDXL share."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    """Rescale so that the last step is pure noise (arXiv 2305.08891); its sigma is then capped, not infinite."""

    @cached_property
    def sigmas(self) -> Tensor:
        """(1000,), rising."""
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64).square()
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if self.zero_terminal_snr:
            root = alphas_cumprod.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            alphas_cumprod = root.square()
            alphas_cumprod[-1] = 4.8973451890853435e-08  # ComfyUI's cap: sigma_max 4518.7 instead of infinity
        return ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()

    def sigma_at(self, u_B: Tensor) -> Tensor:
        index_B = (u_B * TRAIN_TIMESTEPS).long().clamp(0, TRAIN_TIMESTEPS - 1)
        return self.sigmas.to(u_B.device)[index_B]

    def timestep(self, sigma_B: Tensor) -> Tensor:
        """Returns the index, (B,), of the nearest noise level in log space: what the network is fed."""
        distance = sigma_B.reshape(-1, 1).log() - self.sigmas.to(sigma_B.device).log()
        return distance.abs().argmin(dim=1)

    def sigma_of(self, timestep: Tensor) -> Tensor:
        """Noise level at a fractional timestep, interpolated in log space."""
        position = timestep.clamp(0, TRAIN_TIMESTEPS - 1)
        low, high = position.floor().long(), position.ceil().long()
        log_sigmas = self.sigmas.to(timestep.device).log()
        share = position - low
        return ((1 - share) * log_sigmas[low] + share * log_sigmas[high]).exp()

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        return latents + expand(sigma_B, latents) * noise

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        return noise * (1 + sigma**2) ** 0.5  # the variance of latents of unit variance plus the noise

    def network_input(self, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        return noisy / (expand(sigma_B, noisy).square() + 1).sqrt()

    def snr(self, sigma_B: Tensor) -> Tensor:
        return 1 / sigma_B.square().clamp_min(1e-8)


@dataclass(frozen=True)
class Epsilon(_Discrete):
    """The network predicts the noise."""

    name: str = "epsilon"

    def target(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        return noise

    def to_denoised(self, noisy: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
        return noisy - expand(sigma_B, noisy) * prediction


@dataclass(frozen=True)
class VPrediction(_Discrete):
    """The network predicts v = sqrt(abar) * noise - sqrt(1 - abar) * x0 (arXiv 2202.00512)."""

    name: str = "v"

    def target(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        sigma = expand(sigma_B, latents)
        return (noise - sigma * latents) / (sigma.square() + 1).sqrt()

    def to_denoised(self, noisy: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
        sigma = expand(sigma_B, noisy)
        return noisy / (sigma.square() + 1) - prediction * sigma / (sigma.square() + 1).sqrt()


def with_zero_terminal_snr(objective: Objective) -> Objective:
    """An epsilon or v objective whose highest noise level is pure noise. Raises ValueError for another one."""
    if not isinstance(objective, _Discrete):
        raise ValueError(f"{objective.name} models have no table of betas that could be rescaled")
    rescaled: Objective = replace(objective, zero_terminal_snr=True)
    return rescaled
