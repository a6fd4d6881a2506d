"""What a loaded model predicts, asked of its own `model_sampling`: honours every ModelSampling node."""

import copy

import torch
from torch import Tensor

from ....trainer.config.run import ObjectiveConfig
from ....trainer.diffusion.objectives import Objective, expand
from ....trainer.errors import ConfigError
from ..comfy_types import ModelSampling

KINDS = {"CONST": "flow", "V_PREDICTION": "v", "EPS": "epsilon"}
"""ComfyUI's parameterisations by class name, in the order they are looked for (V_PREDICTION is an EPS)."""


class HostObjective:
    """ComfyUI's noise law and parameterisation behind the engine's interface.

    Holds a private copy of the small `model_sampling` module, so that nothing of the host is shared with the training
    thread. Call the constructor outside inference mode.
    """

    def __init__(self, model_sampling: ModelSampling) -> None:
        self._sampling = copy.deepcopy(model_sampling)
        self._noise_scale = float(getattr(self._sampling, "noise_scale", 1.0))
        ancestors = {cls.__name__ for cls in type(model_sampling).__mro__}
        known = [kind for name, kind in KINDS.items() if name in ancestors]
        exact = not ancestors & {"EDM", "X0", "IMG_TO_IMG", "IMG_TO_IMG_FLOW"}
        self.name = known[0] if known else type(model_sampling).__name__
        unit_data = float(getattr(self._sampling, "sigma_data", 1.0)) == 1.0  # which the closed form of v assumes
        self._closed_form = bool(known) and exact and (self.name != "v" or unit_data)
        self._sigmas = self._sampling.sigmas.detach().clone().float()

    @property
    def sigmas(self) -> Tensor:
        return self._sigmas

    def timestep(self, sigma_B: Tensor) -> Tensor:
        return self._sampling.timestep(sigma_B)

    def sigma_of(self, timestep: Tensor) -> Tensor:
        return self._sampling.sigma(timestep)

    def sigma_at(self, u_B: Tensor) -> Tensor:
        if self.name == "flow":
            return u_B
        levels = self._sigmas.to(u_B.device)
        return levels[(u_B * len(levels)).long().clamp(0, len(levels) - 1)]

    def sampling_shift(self) -> float:
        """The shift s of a flow model's schedule, read off its middle: sigma(1/2) = s / (s + 1)."""
        half = self.timestep(torch.ones(1)) / 2
        middle = float(self.sigma_of(half))
        return middle / (1 - middle)

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        return self._sampling.noise_scaling(sigma_B, noise.clone(), latents.clone())

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        level = torch.tensor([sigma], device=noise.device)
        return self._sampling.noise_scaling(level, noise.clone(), torch.zeros_like(noise), True)

    def target(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        if self._closed_form and self.name == "flow":
            return self._noise_scale * noise - latents
        if self._closed_form and self.name == "epsilon":
            return noise
        if self._closed_form:
            sigma = expand(sigma_B, latents)
            return (noise - sigma * latents) / (sigma.square() + 1).sqrt()
        return self._inverted(latents, self.add_noise(latents, noise, sigma_B), sigma_B)

    def _inverted(self, latents: Tensor, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        """Any parameterisation that is affine in the output: denoised = a * noisy + b * output, solved for the output."""
        ones, zeros = torch.ones_like(noisy), torch.zeros_like(noisy)
        a, b = self.to_denoised(ones, zeros, sigma_B), self.to_denoised(zeros, ones, sigma_B)
        return (latents - a * noisy) / b

    def to_denoised(self, noisy: Tensor, prediction: Tensor, sigma_B: Tensor) -> Tensor:
        return self._sampling.calculate_denoised(sigma_B, prediction, noisy)

    def network_input(self, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        return self._sampling.calculate_input(sigma_B, noisy)

    def snr(self, sigma_B: Tensor) -> Tensor:
        signal = 1 - sigma_B if self.name == "flow" else torch.ones_like(sigma_B)
        return (signal / sigma_B.clamp_min(1e-8)).square()


PURE_NOISE = 1e-6
"""Signal-to-noise ratio below which a noise level counts as pure noise; ComfyUI's highest has 4.9e-8, that of SDXL 0.0047."""


def check_pure_noise(config: ObjectiveConfig, objective: Objective) -> None:
    """Raise ConfigError for a MODEL whose highest noise level is not pure noise where that is asked for."""
    if config.zero_terminal_snr and float(objective.snr(objective.sigmas[-1:])) > PURE_NOISE:
        raise ConfigError(
            "zero_terminal_snr: this MODEL does not sample from pure noise; put ModelSamplingDiscrete with zsnr on between its loader and "
            "Loom Train LoRA, so that samples and sweeps do too"
        )
