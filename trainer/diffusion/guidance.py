"""Guidance: how the predictions with and without the prompt become one. All inputs are denoised latents (x0).

CFG: Ho & Salimans, arXiv 2207.12598. Rescaling: Lin et al., arXiv 2305.08891. APG: Sadat et al., arXiv 2410.02416, algorithm 1. One place for the engine's
samplers and for the ComfyUI node.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Guidance(Protocol):
    """A way to combine the predictions with and without the prompt. Its names are in `choices.GUIDANCE_METHODS`."""

    @property
    def scale(self) -> float:
        """Guidance scale; at 1 the prediction without the prompt is not needed."""
        ...

    def begin(self) -> "Combine":
        """A fresh state for one sampling run."""
        ...


class Combine(Protocol):
    """Guided denoised latents of one step, from those with (conditional) and without the prompt, at noise level sigma."""

    def __call__(self, conditional: Tensor, unconditional: Tensor, sigma: float) -> Tensor: ...


@dataclass(frozen=True)
class CFG:
    """The prediction is unconditional + scale * (conditional - unconditional)."""

    scale: float

    def begin(self) -> "Combine":
        return lambda conditional, unconditional, sigma: torch.lerp(unconditional, conditional, self.scale)


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: conditional + (scale - 1) * (orthogonal part + eta * parallel part).

    With eta 1, no threshold and no momentum it is CFG of the same scale.
    """

    scale: float
    eta: float = 0.0
    norm_threshold: float = 0.0
    momentum: float = 0.0

    def begin(self) -> "Combine":
        state = Momentum(self.momentum)

        def combine(conditional: Tensor, unconditional: Tensor, sigma: float) -> Tensor:
            update = self.update(conditional, state.accumulate(conditional - unconditional, sigma))
            return conditional + (self.scale - 1) * update.to(conditional.dtype)

        return combine

    def as_conditional(self, conditional: Tensor, unconditional: Tensor, difference: Tensor) -> Tensor:
        """The prediction from which plain CFG of the same scale makes this guidance's result, for hosts that add CFG.

        With u the unconditional prediction and s the scale: u + (c - u) / s + (s - 1) / s * update.
        """
        update = self.update(conditional, difference)
        wide = unconditional.float()
        mixed = wide + (conditional.float() - wide) / self.scale + (self.scale - 1) / self.scale * update
        return mixed.to(conditional.dtype)

    def update(self, conditional: Tensor, difference: Tensor) -> Tensor:
        """The guidance direction, fp32: limited to `norm_threshold`, its part along `conditional` scaled by eta."""
        difference = limit_norm(difference.float(), self.norm_threshold)
        parallel, orthogonal = split_parallel(difference, conditional.float())
        return orthogonal + self.eta * parallel


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """Another guidance whose result gets its contrast back: arXiv 2305.08891, equations 14 to 16, on denoised latents.

    The paper rescales what the network predicts. Here, as everywhere in this file, predictions are denoised latents: their
    spread is the image's contrast at every noise level, which is what burns out at high scales.
    """

    guidance: Guidance
    phi: float
    """Share of the rescaled result; 0 leaves the guidance, 1 gives exactly the conditional prediction's spread."""

    @property
    def scale(self) -> float:
        return self.guidance.scale

    def begin(self) -> "Combine":
        combine = self.guidance.begin()

        def rescaled(conditional: Tensor, unconditional: Tensor, sigma: float) -> Tensor:
            return rescale(combine(conditional, unconditional, sigma), conditional, self.phi)

        return rescaled


def rescale(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Returns phi * guided * std(conditional) / std(guided) + (1 - phi) * guided, per sample, computed in fp32."""
    if not phi:
        return guided
    ratio = _per_sample_std(conditional.float()) / _per_sample_std(guided.float()).clamp_min(1e-12)
    return (guided.float() * (phi * ratio + 1 - phi)).to(guided.dtype)


def _per_sample_std(tensor: Tensor) -> Tensor:
    return tensor.std(dim=tuple(range(1, tensor.ndim)), keepdim=True)


@dataclass
class Momentum:
    """Running average m <- difference + momentum * m, in fp32; it starts again when sigma does not fall."""

    momentum: float
    average: Tensor | None = None
    last_sigma: float = field(default=float("inf"))

    def accumulate(self, difference: Tensor, sigma: float) -> Tensor:
        """The average after a step at noise level `sigma` with this difference of the predictions, fp32."""
        difference = difference.float()
        if not self.momentum:
            return difference
        if self.average is None or sigma >= self.last_sigma or self.average.shape != difference.shape:
            self.average = difference
        else:
            self.average = difference + self.momentum * self.average.to(difference.device)
        self.last_sigma = sigma
        return self.average


def _per_sample_norm(tensor: Tensor) -> Tensor:
    """L2 norm over everything but the batch, kept broadcastable; for 4-D and 5-D latents alike."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


def limit_norm(tensor: Tensor, threshold: float) -> Tensor:
    """Scale each sample down to an L2 norm of at most `threshold`; 0 leaves it."""
    if threshold <= 0:
        return tensor
    return tensor * (threshold / _per_sample_norm(tensor).clamp_min(1e-12)).clamp_max(1.0)


def split_parallel(tensor: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (part along `direction`, part at right angles to it), per sample."""
    unit = direction / _per_sample_norm(direction).clamp_min(1e-12)
    share = (tensor * unit).sum(dim=tuple(range(1, tensor.ndim)), keepdim=True)
    parallel = share * unit
    return parallel, tensor - parallel
