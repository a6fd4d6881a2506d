"""Guidance methods inside ComfyUI: a function before CFG that changes the predictions so that CFG yields the method's result.

ComfyUI's own node has an effective scale of one more, changes images at scale 1, and takes norms per channel of 5-D
latents; this function does none of the three. Predictions are denoised latents for every kind of model here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ....trainer.diffusion.guidance import APG, Combine, Guidance, Momentum, rescale
from ..comfy_types import ModelPatcher, PreCfgArguments


def add_guidance(
    patcher: ModelPatcher, eta: float, norm_threshold: float, momentum: float, phi: float = 0.0
) -> ModelPatcher:
    """A clone of the MODEL that samples with APG at the sampler's own scale, then restores the share `phi` of its contrast.

    With eta 1, no threshold and no momentum APG is CFG, so this is also how plain CFG is rescaled.
    """
    clone = patcher.clone()
    clone.set_model_sampler_pre_cfg_function(before_cfg(eta, norm_threshold, momentum, phi))
    return clone


def before_cfg(
    eta: float, norm_threshold: float, momentum: float, phi: float = 0.0
) -> Callable[[PreCfgArguments], list[Tensor]]:
    """The function for `set_model_sampler_pre_cfg_function`. It keeps the running average of the sampling run."""
    state = _State(Momentum(momentum))

    def function(arguments: PreCfgArguments) -> list[Tensor]:
        predictions: list[Tensor] = arguments["conds_out"]
        scale = float(arguments["cond_scale"])
        if scale in (0.0, 1.0) or len(predictions) < 2 or arguments["conds"][1] is None:
            return predictions  # ComfyUI gives zeros for a negative prompt that it has skipped
        conditional, unconditional, *rest = predictions
        sigma = float(arguments["sigma"].max())
        difference = state.of(arguments).accumulate(conditional - unconditional, sigma)
        apg = APG(scale=scale, eta=eta, norm_threshold=norm_threshold, momentum=momentum)
        made = apg.as_conditional(conditional, unconditional, difference)
        if phi:  # what CFG will make of it, rescaled, and turned back into what CFG makes that of
            guided = torch.lerp(unconditional.float(), made.float(), scale)
            wanted = rescale(guided, conditional, phi)
            made = (unconditional + (wanted - unconditional) / scale).to(conditional.dtype)
        return [made, unconditional, *rest]

    return function


def add_method(patcher: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the MODEL that samples with any of the engine's guidance methods, at the method's own scale."""
    clone = patcher.clone()
    clone.set_model_sampler_pre_cfg_function(before_cfg_of(guidance))
    return clone


def before_cfg_of(guidance: Guidance) -> Callable[[PreCfgArguments], list[Tensor]]:
    """Returns the function that computes, with u the unconditional prediction, s the scale and g what the method gives: u + (g - u) / s, of which CFG makes g."""
    runs: dict[str, object] = {"sigmas": None, "combine": guidance.begin()}

    def function(arguments: PreCfgArguments) -> list[Tensor]:
        predictions: list[Tensor] = arguments["conds_out"]
        scale = float(arguments["cond_scale"])
        if scale in (0.0, 1.0) or len(predictions) < 2 or arguments["conds"][1] is None:
            return predictions
        sigmas = sigmas_of(arguments)
        if sigmas is not runs["sigmas"]:
            runs.update(sigmas=sigmas, combine=guidance.begin())
        conditional, unconditional, *rest = predictions
        combine = cast(Combine, runs["combine"])
        guided = combine(conditional.float(), unconditional.float(), float(arguments["sigma"].max()))
        made = unconditional + (guided - unconditional) / scale
        return [made.to(conditional.dtype), unconditional, *rest]

    return function


def sigmas_of(arguments: PreCfgArguments) -> object:
    """The tensor of noise levels of this sampling run. Each run makes its own, so that one run can be distinguished from the next."""
    return arguments.get("model_options", {}).get("transformer_options", {}).get("sample_sigmas")


@dataclass
class _State:
    """The running average of one sampling run."""

    momentum: Momentum
    sigmas: object = field(default=None)

    def of(self, arguments: PreCfgArguments) -> Momentum:
        sigmas = sigmas_of(arguments)
        if sigmas is not self.sigmas:
            self.sigmas, self.momentum = sigmas, Momentum(self.momentum.momentum)
        return self.momentum
