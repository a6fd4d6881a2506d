"""Trying a learning rate for a few steps of a run, with its own images, noise and schedule, and measuring it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor

from ..data.batches import CachedBatches, Singles
from ..diffusion.denoiser import Denoiser
from ..distributed.processes import Processes
from ..errors import DivergedError
from ..lora.adapter import Adapter
from .find_rate import IMAGES
from .held_out import HeldOut, has_two_rulers, held_out_losses, losses_at_even_levels, mean_loss
from .loop import Batches, LoopSettings, Training, fit


def probe(denoiser: Denoiser, held_out: HeldOut, batches: Batches) -> HeldOut:
    """What rates are judged by: the first images that are set aside, or where there are none, of those that are trained on.

    By both rulers where there are two, with half as many noise levels each.
    """
    levels = max(held_out.timesteps // 2, 1) if has_two_rulers(denoiser, held_out) else held_out.timesteps
    if held_out.batches:
        return replace(held_out, batches=held_out.batches[:IMAGES], timesteps=levels)
    images = Singles(batches)[:IMAGES] if isinstance(batches, CachedBatches) else ()
    return replace(held_out, batches=images, timesteps=levels)


def passes(denoiser: Denoiser, probe: HeldOut) -> int:
    """Forward passes of one `judged_loss`."""
    return len(probe.batches) * probe.timesteps * (2 if has_two_rulers(denoiser, probe) else 1)


def judged_loss(denoiser: Denoiser, probe: HeldOut) -> float:
    """Mean of the validation losses at the family's levels and at even ones: the best rate for one is not always the best for the other."""
    at_own = held_out_losses(denoiser, probe)
    even = losses_at_even_levels(denoiser, probe, at_own)
    return (mean_loss(at_own) + mean_loss(at_own if even is None else even)) / 2


@dataclass(kw_only=True)
class Trials:
    """Trains an adapter with one rate after another, each from the weights that it has at first, which `restore` puts back."""

    denoiser: Denoiser
    adapter: Adapter
    batches: Batches
    settings: LoopSettings
    probe: HeldOut
    processes: Processes
    fresh: Callable[[float], Training]
    """A training of the adapter from step 0 with a rate; its optimizer has no state yet."""
    factor: Callable[[int], float]
    """The schedule: {finished steps: share of the rate}."""
    on_step: Callable[[], None]
    """Called after every step. It may block, and raises to stop."""

    def __post_init__(self) -> None:
        self._first = self._copy()
        self._reached: dict[float, tuple[Training, dict[str, Tensor]]] = {}

    def train(self, rate: float, steps: int) -> float:
        """The loss after this many steps at a rate, inf where it has diverged. A rate goes on from where it was."""
        training, values = self._reached.get(rate) or (self.fresh(rate), self._first)
        self._put(values)
        taken: Any = fit(
            self.denoiser, training, self.batches, self.settings, lambda step: rate * self.factor(step), self.processes
        )
        try:
            for _ in islice(taken, steps - training.step):
                self.on_step()
        except DivergedError:
            return math.inf
        self._reached[rate] = (training, self._copy())
        return self.processes.from_main(lambda: judged_loss(self.denoiser, self.probe))

    def restore(self) -> None:
        """Put the weights back that the adapter had at first."""
        self._put(self._first)
        self._reached.clear()

    def _copy(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.adapter.parameters().items()}

    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.adapter.parameters().items():
            parameter.data.copy_(values[name])
            parameter.grad = None
