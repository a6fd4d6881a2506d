"""The validation loss: the same held-out images, noise levels and noise every time, so that only the adapter changes it.

Two rulers measure it. "fixed": the levels depend on the model family and the noise on the image, so that the numbers of any
two runs on the same images compare, whatever seed, shift, timestep sampling or loss they train with. "run": levels by the
run's own shift, noise by its seed, as all runs of version 0.1 measured; they go on with it, and compare with themselves only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..config.run import ObjectiveConfig, TrainingConfig, ValidationConfig
from ..diffusion.denoiser import Denoiser
from ..diffusion.loss import draw_noise
from ..diffusion.objectives import Objective
from ..diffusion.timesteps import NoiseLevels, ResolutionShift, Uniform
from ..lora.adapter import Adapter
from ..seeding import generator
from ..types import Batch
from .loss_settings import guided_scale, noise_levels
from .step import LossSettings, Switch, sample_loss

FIXED, OWN = "fixed", "run"
MOST_OF_DRIFT = 8
"""Images that the drift from the base is measured on."""
EVEN = NoiseLevels(law=Uniform())
"""Evenly spread noise levels, whatever the family's shift."""


def ruler_of(record: Mapping[str, Any]) -> str:
    """The ruler of a run by its run.json; that of new runs for an empty record."""
    return str(record.get("ruler", OWN)) if record else FIXED


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Images set aside, and the places on the noise schedule they are measured at."""

    batches: Sequence[Batch]
    """One image each."""
    timesteps: int
    levels: NoiseLevels
    """Its shift places the noise levels: the family's, or the run's own with the ruler of version 0.1."""
    seed: int | None = None
    """None: the noise depends on the image's file name. A seed: on it and the image's number, as in version 0.1."""
    guided_scale: float | None = None
    """Scale of the guided loss that the run trains with, whatever its form: the error of the guided prediction is measured then, for the
    plain one rises where a distillation is kept. None for the plain loss."""

    @property
    def has_fixed_ruler(self) -> bool:
        """Whether the numbers compare with those of other runs."""
        return self.seed is None

    def positions(self) -> list[float]:
        """Evenly spread shares of the schedule, away from both ends: (i + 1/2) / n."""
        return [(i + 0.5) / self.timesteps for i in range(self.timesteps)]

    def noise_source(self, batch: Batch, number: int, index: int) -> torch.Generator:
        """Draws the noise of the image with this number at one of the levels."""
        if self.seed is None:
            return generator(0, "validation", batch.names[0], index)
        return generator(self.seed, "held out", number, index)


def make_held_out(
    ruler: str,
    batches: Sequence[Batch],
    config: tuple[ObjectiveConfig, TrainingConfig, ValidationConfig],
    predicts: Objective,
    family_shift: float | ResolutionShift,
) -> HeldOut:
    """The held-out images under a ruler. Only the ruler of version 0.1 asks for the run's objective and seed."""
    objective, training, validation = config
    if ruler == FIXED:
        levels, seed = NoiseLevels(law=Uniform(), shift=family_shift), None
    else:
        levels, seed = noise_levels(objective, predicts, family_shift), training.seed
    guided = None if objective.guided_loss == "off" else guided_scale(objective)
    return HeldOut(batches=batches, timesteps=validation.timesteps, levels=levels, seed=seed, guided_scale=guided)


@torch.no_grad()
def held_out_losses(
    denoiser: Denoiser,
    held_out: HeldOut,
    levels: NoiseLevels | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[float]]:
    """Unweighted squared error of every image (outer) at every noise level (inner); shorter if stopped before the end.

    The levels are those of `held_out` unless others are given.
    """
    levels = levels or held_out.levels
    settings = LossSettings(noise_levels=levels)
    if held_out.guided_scale is not None:
        settings = replace(settings, guided="output", guided_scale=held_out.guided_scale)
    losses: list[list[float]] = []
    for number, batch in enumerate(held_out.batches):
        latents = batch.latents_BCHW
        height, width = latents.shape[-2:]
        row: list[float] = []
        for index, position in enumerate(held_out.positions()):
            if should_stop():
                return losses
            sigma_B = levels.sigma(denoiser.objective, height, width, torch.tensor([position])).to(latents)
            noise = draw_noise(tuple(latents.shape[1:]), held_out.noise_source(batch, number, index))
            row.append(sample_loss(denoiser, batch, noise.unsqueeze(0).to(latents), sigma_B, settings).item())
        losses.append(row)
    return losses


def has_two_rulers(denoiser: Denoiser, held_out: HeldOut) -> bool:
    """Whether the evenly spread levels are others than those of `held_out`."""
    return held_out.has_fixed_ruler and denoiser.objective.name == "flow" and held_out.levels.shift != EVEN.shift


def losses_at_even_levels(
    denoiser: Denoiser,
    held_out: HeldOut,
    at_own: list[list[float]],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[list[float]] | None:
    """Returns `held_out_losses` at evenly spread levels; None with the ruler of version 0.1, which has no second number.

    `at_own`, the losses at the levels of `held_out`, is the answer where these are the even ones.
    """
    if has_two_rulers(denoiser, held_out):
        return held_out_losses(denoiser, held_out, EVEN, should_stop)
    return at_own if held_out.has_fixed_ruler else None


@torch.no_grad()
def drift_from_base(
    denoiser: Denoiser,
    held_out: HeldOut,
    of_base: dict[tuple[int, int], torch.Tensor],
    without_adapter: Switch,
    should_stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean of |f(x_t, c') - f_0(x_t, c')|^2 over the first `MOST_OF_DRIFT` held-out images and the noise levels of `held_out`; 0 for an
    adapter that changes nothing.

    f is the network with the adapter, f_0 the same network without it, c' the caption with the class in place of the trigger, or
    the empty prompt where no trigger is known, x_t the image with the noise of the validation loss. `of_base` keeps the predictions of
    the base, which do not change: give the same dictionary the next time.
    """
    values: list[float] = []
    for number, batch in enumerate(held_out.batches[:MOST_OF_DRIFT]):
        latents, neutral = batch.latents_BCHW, batch.preserved
        assert neutral is not None
        height, width = latents.shape[-2:]
        for index, position in enumerate(held_out.positions()):
            if should_stop():
                return float("nan")
            sigma_B = held_out.levels.sigma(denoiser.objective, height, width, torch.tensor([position])).to(latents)
            noise = draw_noise(tuple(latents.shape[1:]), held_out.noise_source(batch, number, index))
            noisy = denoiser.objective.add_noise(latents, noise.unsqueeze(0).to(latents), sigma_B)
            if (number, index) not in of_base:
                with without_adapter():
                    of_base[number, index] = denoiser.predict(noisy, sigma_B, neutral.conditioning).cpu()
            change = denoiser.predict(noisy, sigma_B, neutral.conditioning) - of_base[number, index].to(latents)
            values.append(change.float().square().mean().item())
    return sum(values) / len(values)


@dataclass(kw_only=True)
class Drift:
    """`drift_from_base` of a run. The base's predictions are computed once."""

    denoiser: Denoiser
    held_out: HeldOut
    has_base: bool = True
    """False for a full fine-tune, which leaves no base to compare with."""
    of_base: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def values(
        self, adapter: Adapter, held: dict[str, torch.Tensor] | None, should_stop: Callable[[], bool]
    ) -> dict[str, float]:
        """Returns {"drift": that of the adapter with other values, or with those it has for None}; nothing without a base."""
        if not self.has_base:
            return {}
        with adapter.holding(held):
            off = adapter.disabled
            return {"drift": drift_from_base(self.denoiser, self.held_out, self.of_base, off, should_stop)}


def held_out_loss(denoiser: Denoiser, held_out: HeldOut, levels: NoiseLevels | None = None) -> float:
    """Mean of `held_out_losses`; nan without images."""
    return mean_loss(held_out_losses(denoiser, held_out, levels))


def rounded(losses: Sequence[Sequence[float]]) -> list[list[float]]:
    """To the digits that fp32 has, for the record."""
    return [[float(f"{value:.7g}") for value in row] for row in losses]


def mean_loss(losses: Sequence[Sequence[float]]) -> float:
    """The mean of all losses; NaN where there are none."""
    values = [value for row in losses for value in row]
    return sum(values) / len(values) if values else float("nan")
