"""From the [objective] table to the objects of `diffusion/`: the loss, and the noise levels that are trained."""

from collections.abc import Sequence

from ..choices import TIMESTEP_SAMPLING
from ..config.run import NetworkConfig, ObjectiveConfig
from ..diffusion.objectives import Objective
from ..diffusion.timesteps import NoiseLevels, ResolutionShift
from ..errors import ConfigError
from ..types import Example
from .step import LossSettings, Rollout

GUIDED_SCALE = 4.0
"""Scale of the guided loss where no family has its own (diffusion-pipe and musubi-tuner: 4)."""


def check_objective(config: ObjectiveConfig, objective: Objective) -> None:
    """Raise ConfigError for settings that mean nothing for what the model predicts."""
    if objective.name == "flow":
        for name in (
            "min_snr_gamma",
            "noise_offset",
            "multires_noise_iterations",
            "debiased_loss",
            "scale_v_loss",
            "zero_terminal_snr",
        ):
            if value := getattr(config, name):
                raise ConfigError(
                    f"objective.{name} = {value}: it is made for epsilon and v models, this one is a flow model; leave it out"
                )
        if config.huber_schedule == "snr":
            raise ConfigError("objective.huber_schedule = 'snr': a flow model has no such schedule; use 'exponential'")
        return
    if config.scale_v_loss and objective.name != "v":
        raise ConfigError(
            f"objective.scale_v_loss = True: it is made for v models, this one predicts {objective.name}; leave it out"
        )
    for name, default in (("logit_mean", 0.0), ("logit_std", 1.0)):
        if config.timestep_sampling == "auto" and (value := getattr(config, name)) != default:
            raise ConfigError(
                f"objective.{name} = {value}: this model predicts {objective.name} and is trained on uniform noise levels; set objective.timestep_sampling = 'logit_normal', or leave it out"
            )
    if config.shift != "auto":
        raise ConfigError(
            f"objective.shift = {config.shift!r}: only flow models have a shift, this one predicts {objective.name}; leave it out"
        )


def noise_levels(config: ObjectiveConfig, objective: Objective, family_shift: float | ResolutionShift) -> NoiseLevels:
    """What draws the noise levels. auto: logit-normal with the family's shift for flow models, else uniform."""
    law = config.timestep_sampling
    if law == "auto":
        law = "logit_normal" if objective.name == "flow" else "uniform"
    shift: float | ResolutionShift
    if config.shift == "auto":
        shift = family_shift
    elif config.shift == "resolution":
        shift = family_shift if isinstance(family_shift, ResolutionShift) else ResolutionShift()
    else:
        shift = config.shift
    chosen = TIMESTEP_SAMPLING[law]
    return NoiseLevels(
        law=chosen.load()(*chosen.values(config)), shift=shift, low=config.min_timestep, high=config.max_timestep
    )


def loss_settings(config: ObjectiveConfig, levels: NoiseLevels) -> LossSettings:
    """The loss of the [objective] table, at noise levels that `levels` draws."""
    return LossSettings(
        noise_levels=levels,
        kind=config.loss,
        huber_delta=config.huber_delta,
        min_snr_gamma=config.min_snr_gamma,
        noise_offset=config.noise_offset,
        multires_iterations=config.multires_noise_iterations,
        multires_discount=config.multires_noise_discount,
        perturbation=config.ip_noise_gamma,
        soft_min_snr=config.soft_min_snr,
        debiased=config.debiased_loss,
        scale_v=config.scale_v_loss,
        huber_schedule=config.huber_schedule,
        unmasked_probability=config.unmasked_probability,
        unmasked_weight=config.unmasked_weight,
        normalised_masks=config.masked_loss == "normalised",
        spread=config.timestep_spread == "even",
        guided=config.guided_loss,
        guided_scale=guided_scale(config),
        routes=config.routes,
        rollout=Rollout(
            most=config.scheduled_sampling_max_step_offset,
            probability=config.scheduled_sampling_probability,
            ramp_steps=config.scheduled_sampling_ramp_steps,
            strategy=config.scheduled_sampling_strategy,
        ),
    )


def check_strengths(
    examples: Sequence[Example], network: NetworkConfig, rate: float | str, *, sharded: bool = False
) -> None:
    """Raise ConfigError for images that are trained at a strength of their own, as sliders are, where that is not possible. `rate`
    is the setting optimizer.learning_rate."""
    odd = [one for one in examples if one.slider is not None or one.strength != 1]
    if not odd:
        return
    found = next((one for one in odd if one.slider is not None), odd[0])
    what = f"dataset.strength = {found.strength:g}"
    if found.slider is not None:
        what = f"dataset.slider_positive = {found.slider.positive!r}"
    elif all(one.strength < 0 for one in examples if one.role == "train"):
        raise ConfigError(f"{what}: every image is trained at a negative strength; give the positive ones strength 1")
    if network.kind != "lora":
        raise ConfigError(
            f"{what} does not go with network.kind = {network.kind!r}, which does the opposite at no strength: use 'lora'"
        )
    if rate == "find" and found.slider is not None:
        raise ConfigError(
            f"{what} does not go with learning_rate = 'find', which measures how well images are learnt: use 'auto', or a number"
        )
    if sharded:
        raise ConfigError(f"{what} does not go with memory.shard: use one GPU")


def guided_scale(config: ObjectiveConfig) -> float:
    """Scale of the guided loss. "auto" stands here only where there is none (`runs.settled`)."""
    return GUIDED_SCALE if config.guided_scale == "auto" else config.guided_scale


def pass_notes(config: ObjectiveConfig, *, sharded: bool = False) -> list[str]:
    """What forward passes beside that of the loss cost, for the log. Raises ConfigError for a base that is split over processes: they
    must run the same passes, and a batch without a caption or without a rollout takes fewer."""
    most, notes = config.scheduled_sampling_max_step_offset, []
    if sharded and config.guided_loss != "off":
        raise ConfigError(f"objective.guided_loss = {config.guided_loss!r} does not go with memory.shard: use one GPU")
    if sharded and most:
        raise ConfigError(
            f"objective.scheduled_sampling_max_step_offset = {most} does not go with memory.shard: use one GPU"
        )
    if config.guided_loss != "off":
        notes.append(
            f"guided loss ({config.guided_loss} form, scale {guided_scale(config):g}): each forward pass takes another one without gradient for the empty text, a third to a half more time per step"
        )
    if most:
        notes.append(
            f"scheduled sampling: noisy latents are made by the network itself, in up to {most} more forward passes without gradient per step"
        )
    return notes
