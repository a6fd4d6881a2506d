"""Timestep sampling: distributions of the noise level on [0, 1], where 0 is clean and 1 is pure noise, and their shift.

Every draw takes its own generator, so that the noise level of an image depends on nothing but its place in the run. The names
that people choose from are in `choices.TIMESTEP_SAMPLING`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from .objectives import Objective, shift_sigma


class TimestepLaw(Protocol):
    """A distribution of noise levels."""

    def draw(self, generator: Generator) -> Tensor:
        """One number in [0, 1], shape ()."""
        ...

    def at(self, u: Tensor) -> Tensor:
        """The number for a uniform u in [0, 1), shape (): evenly spread u give evenly spread draws."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every share of the schedule equally often."""

    def draw(self, generator: Generator) -> Tensor:
        return torch.rand((), generator=generator)

    def at(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """Draws sigmoid(N(mean, std)), the middle noise levels most often (SD3 paper, arXiv 2403.03206, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def draw(self, generator: Generator) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))

    def at(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double())).float()


@dataclass(frozen=True)
class Mode:
    """Maps a uniform u to 1 - u - s (cos^2(pi u / 2) - 1 + u) (SD3 paper, eq. 20); s = 0 is uniform."""

    scale: float = 1.29

    def draw(self, generator: Generator) -> Tensor:
        return self.at(torch.rand((), generator=generator))

    def at(self, u: Tensor) -> Tensor:
        return (1 - u - self.scale * (torch.cos(math.pi * u / 2).square() - 1 + u)).clamp(0, 1)


@dataclass(frozen=True)
class Beta:
    """Beta(a, b), as the ratio of two gamma variates."""

    a: float = 2.0
    b: float = 2.0

    def draw(self, generator: Generator) -> Tensor:
        first, second = (
            torch._standard_gamma(torch.tensor(x, dtype=torch.float64), generator=generator) for x in (self.a, self.b)
        )
        return (first / (first + second)).float()

    def at(self, u: Tensor) -> Tensor:
        edges, share = _beta_cdf(self.a, self.b)
        above = int(torch.searchsorted(share, u.double().reshape(1), right=True).clamp(1, len(share) - 1))
        low, high = share[above - 1], share[above]
        return (edges[above - 1] + (u.double() - low) / (high - low) * (edges[above] - edges[above - 1])).float()


@lru_cache
def _beta_cdf(a: float, b: float, cells: int = 4096) -> tuple[Tensor, Tensor]:
    """(points of [0, 1], closer at both ends; the distribution function there), by the midpoint rule."""
    edges = (1 - torch.cos(math.pi * torch.linspace(0, 1, cells + 1, dtype=torch.float64))) / 2
    middle = (edges[1:] + edges[:-1]) / 2
    mass = middle.pow(a - 1) * (1 - middle).pow(b - 1) * edges.diff()
    share = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)])
    return edges, share / share[-1]


def beta_law(parameters: tuple[float, float]) -> Beta:
    """Beta of a pair of parameters, as the option holds them."""
    return Beta(*parameters)


@dataclass(frozen=True)
class Listed:
    """One of these shares of the schedule; one that stands there twice is drawn twice as often."""

    shares: tuple[float, ...]

    def draw(self, generator: Generator) -> Tensor:
        return self.at(torch.rand((), generator=generator))

    def at(self, u: Tensor) -> Tensor:
        return torch.tensor(self.shares[min(int(u * len(self.shares)), len(self.shares) - 1)])


@dataclass(frozen=True, kw_only=True)
class ResolutionShift:
    """Shift exp(mu) that grows with the image; mu is linear in the number of the network's patches of patch x patch latents.

    The defaults are Flux's and SD3's, which give 1.88, 2.33 and 3.16 at 512, 768 and 1024 px; Qwen-Image uses
    max_tokens 8192 and max_shift 0.9. Source: black-forest-labs/flux, `sampling.get_schedule`.
    """

    base_tokens: int = 256
    base_shift: float = 0.5
    max_tokens: int = 4096
    max_shift: float = 1.15
    patch: int = 2
    """Side of a patch in latents; 1 where the latents are packed already (FLUX.2)."""

    def at(self, height: int, width: int) -> float:
        """Shift for latents with `height` rows and `width` columns."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        tokens = (height // self.patch) * (width // self.patch)
        return math.exp(self.base_shift + slope * (tokens - self.base_tokens))


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """Draws sigma for a sample: a law, its allowed range, then (flow models only) the shift."""

    law: TimestepLaw
    shift: float | ResolutionShift = 1.0
    low: float = 0.0
    high: float = 1.0

    def draw(self, objective: Objective, height: int, width: int, generator: Generator) -> Tensor:
        """sigma, shape (), for latents with `height` rows and `width` columns."""
        return self._place(objective, height, width, self.law.draw(generator))

    def at(self, objective: Objective, height: int, width: int, share: float) -> Tensor:
        """sigma, shape (), that a uniform number `share` in [0, 1) stands for; no generator has a part in it."""
        return self._place(objective, height, width, self.law.at(torch.tensor(share)))

    def _place(self, objective: Objective, height: int, width: int, drawn: Tensor) -> Tensor:
        u = self.low + (self.high - self.low) * drawn
        return self.sigma(objective, height, width, u.reshape(1))[0]

    def sigma(self, objective: Objective, height: int, width: int, u_B: Tensor) -> Tensor:
        """Noise levels (B,) at shares u of the schedule."""
        if objective.name == "flow":
            u_B = shift_sigma(
                u_B, self.shift.at(height, width) if isinstance(self.shift, ResolutionShift) else self.shift
            )
        return objective.sigma_at(u_B)
