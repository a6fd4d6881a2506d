"""Images from any denoiser: noise, schedule, guidance, integrator. B batch, C channels, H W latent rows, columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..choices import GUIDANCE_METHODS, SAMPLERS
from ..types import Conditioning
from .denoiser import Denoiser
from .guidance import Guidance, Rescaled
from .samplers import schedule
from .skip_layers import SkipLayers, guided_by


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How an image is sampled; `sampler` and `scheduler` are names in the tables of choices.py."""

    steps: int
    sampler: str
    scheduler: str
    guidance: Guidance
    skip: SkipLayers | None = None
    """Skip-layer guidance, None without."""


class SkipSettings(Protocol):
    """The options of a skip-layer guidance, such as those of [validation] and [[sweep.guidance]]."""

    @property
    def skip_layers(self) -> tuple[int, ...]: ...

    @property
    def skip_layer_scale(self) -> float: ...

    @property
    def skip_layer_start(self) -> float: ...

    @property
    def skip_layer_end(self) -> float: ...


def make_skip(settings: SkipSettings) -> SkipLayers | None:
    """The skip-layer guidance of these options; None for one without layers."""
    if not settings.skip_layers:
        return None
    return SkipLayers(
        layers=settings.skip_layers,
        scale=settings.skip_layer_scale,
        start=settings.skip_layer_start,
        end=settings.skip_layer_end,
    )


class GuidanceSettings(Protocol):
    """A guidance method and the options that it reads, such as the configuration's [[sweep.guidance]]."""

    @property
    def method(self) -> str: ...

    @property
    def rescale(self) -> float: ...


def make_guidance(settings: GuidanceSettings) -> Guidance:
    """The method of `choices.GUIDANCE_METHODS` with the options that it reads. Raises ValueError for an unknown one."""
    if settings.method not in GUIDANCE_METHODS:
        raise ValueError(f"guidance method {settings.method!r}: known are {', '.join(GUIDANCE_METHODS)}")
    chosen = GUIDANCE_METHODS[settings.method]
    guidance: Guidance = chosen.load()(*chosen.values(settings))
    return Rescaled(guidance=guidance, phi=settings.rescale) if settings.rescale else guidance


def start_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Returns normal noise, (1, *shape), drawn on the CPU exactly as ComfyUI's KSampler does for this seed."""
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed)).to(device)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    noise_BCHW: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    settings: SampleSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Tensor], None] = lambda denoised_BCHW: None,
) -> Tensor:
    """Latents in model space. Without guidance (scale 1) the negative prompt is not evaluated. `watch` is shown each estimate of the clean
    latents that the sampler goes by, in model space."""
    objective = denoiser.objective
    combine, skip = settings.guidance.begin(), settings.skip

    def predict(noisy_BCHW: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        sigma_B = torch.full((len(noisy_BCHW),), sigma, device=noisy_BCHW.device)
        return objective.to_denoised(noisy_BCHW, denoiser.predict(noisy_BCHW, sigma_B, conditioning), sigma_B)

    def denoise(noisy_BCHW: Tensor, sigma: float) -> Tensor:
        conditional = predict(noisy_BCHW, sigma, positive)
        guided = conditional
        if settings.guidance.scale != 1:
            guided = combine(conditional, predict(noisy_BCHW, sigma, negative), sigma)
        if skip is not None and skip.acts(objective, sigma):
            guided = guided + guided_by(
                skip, denoiser.module, lambda: predict(noisy_BCHW, sigma, positive), conditional
            )
        watch(guided)
        return guided

    sigmas = schedule(objective, settings.scheduler, settings.steps)
    latents: Tensor = SAMPLERS[settings.sampler].load()(
        denoise, objective.start(noise_BCHW, sigmas[0]), sigmas, progress
    )
    return latents
