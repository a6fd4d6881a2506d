"""Pictures from any denoiser: noise, schedule, guidance, integrator. B batch, C channels, H W latent rows, columns."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import Conditioning
from .denoiser import Denoiser
from .guidance import APG, CFG, Guidance, Rescaled
from .samplers import SAMPLERS, schedule


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    steps: int
    sampler: str
    scheduler: str
    guidance: Guidance


def make_guidance(
    method: str,
    scale: float,
    *,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: float = 0.0,
    rescale: float = 0.0,
) -> Guidance:
    """Raises ValueError on an unknown method."""
    guidance: Guidance
    if method == "cfg":
        guidance = CFG(scale)
    elif method == "apg":
        guidance = APG(scale=scale, eta=eta, norm_threshold=norm_threshold, momentum=momentum)
    else:
        raise ValueError(f"guidance method {method!r}: known are cfg and apg")
    return Rescaled(guidance=guidance, phi=rescale) if rescale else guidance


def start_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """(1, *shape) normal noise, drawn on the CPU exactly as ComfyUI's KSampler does for this seed."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    noise_BCHW: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    settings: SampleSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Latents in model space. Without guidance (scale 1) the negative prompt is not evaluated."""
    objective = denoiser.objective
    combine = settings.guidance.begin()

    def predict(noisy_BCHW: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        sigma_B = torch.full((len(noisy_BCHW),), sigma, device=noisy_BCHW.device)
        return objective.to_denoised(noisy_BCHW, denoiser.predict(noisy_BCHW, sigma_B, conditioning), sigma_B)

    def denoise(noisy_BCHW: Tensor, sigma: float) -> Tensor:
        conditional = predict(noisy_BCHW, sigma, positive)
        if settings.guidance.scale == 1:
            return conditional
        return combine(conditional, predict(noisy_BCHW, sigma, negative), sigma)

    sigmas = schedule(objective, settings.scheduler, settings.steps)
    return SAMPLERS[settings.sampler](denoise, objective.start(noise_BCHW, sigmas[0]), sigmas, progress)
