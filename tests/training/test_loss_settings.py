"""From the [objective] table to laws, shifts and losses: every setting arrives where it works."""

import pytest
import torch

from lora_loom.trainer.config.run import ObjectiveConfig
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.diffusion.timesteps import Beta, LogitNormal, Mode, ResolutionShift, Uniform
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.training.loss_settings import check_objective, loss_settings, noise_levels

FLOW, EPSILON, V = FlowMatching(), Epsilon(), VPrediction()


def levels(objective=FLOW, family_shift=3.0, **settings):
    return noise_levels(ObjectiveConfig(**settings), objective, family_shift)


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"timestep_sampling": "uniform"}, Uniform()),
        ({"timestep_sampling": "logit_normal", "logit_mean": 0.5, "logit_std": 0.8}, LogitNormal(0.5, 0.8)),
        ({"timestep_sampling": "mode", "mode_scale": 0.7}, Mode(0.7)),
        ({"timestep_sampling": "beta", "beta": (2.0, 3.0)}, Beta(2.0, 3.0)),
        ({}, LogitNormal(0.0, 1.0)),
        ({"logit_mean": -0.3}, LogitNormal(-0.3, 1.0)),
    ],
    ids=str,
)
def test_laws(settings, law):
    assert levels(**settings).law == law


@pytest.mark.parametrize("objective", [EPSILON, V], ids=str)
def test_automatic_is_uniform_for_the_discrete_models(objective):
    assert levels(objective, 1.0).law == Uniform()


def test_shifts():
    """auto is the family's, a number counts before it, resolution takes the family's law or Flux's."""
    qwen = ResolutionShift(max_tokens=8192, max_shift=0.9)
    assert levels().shift == 3.0
    assert levels(family_shift=qwen).shift == qwen
    assert levels(family_shift=qwen, shift=1.5).shift == 1.5
    assert levels(shift="resolution").shift == ResolutionShift()
    assert levels(family_shift=qwen, shift="resolution").shift == qwen


@pytest.mark.parametrize(("shift", "expected"), [(1.5, 0.6), (3, 0.75), (1, 0.5), ("resolution", 3.158 / 4.158)])
def test_a_shift_reaches_the_noise_level(shift, expected):
    """s u / (1 + (s - 1) u) at u = 0.5, for latents of 1024 x 1024 pixels; whole numbers are shifts too."""
    sigma = levels(shift=shift).sigma(FLOW, 128, 128, torch.tensor([0.5]))
    assert sigma.item() == pytest.approx(expected, abs=1e-4)


def test_ranges():
    made = levels(min_timestep=0.25, max_timestep=0.5)
    assert (made.low, made.high) == (0.25, 0.5)


def test_losses():
    config = ObjectiveConfig(
        loss="smooth_l1", huber_delta=0.3, min_snr_gamma=5.0, noise_offset=0.07, masked_loss="plain"
    )
    made = loss_settings(config, levels())
    assert (made.kind, made.huber_delta, made.min_snr_gamma) == ("smooth_l1", 0.3, 5.0)
    assert (made.noise_offset, made.normalised_masks) == (0.07, False)
    assert loss_settings(ObjectiveConfig(), levels()).normalised_masks


def test_every_further_option_reaches_the_loss():
    config = ObjectiveConfig(
        multires_noise_iterations=6, multires_noise_discount=0.2, ip_noise_gamma=0.1, min_snr_gamma=5.0, soft_min_snr=True, debiased_loss=True,
        scale_v_loss=True, loss="huber", huber_schedule="snr", unmasked_probability=0.1, unmasked_weight=0.2,
    )  # fmt: skip
    made = loss_settings(config, levels())
    assert (made.multires_iterations, made.multires_discount, made.perturbation) == (6, 0.2, 0.1)
    assert (made.soft_min_snr, made.debiased, made.scale_v, made.huber_schedule) == (True, True, True, "snr")
    assert (made.unmasked_probability, made.unmasked_weight) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (FLOW, {"min_snr_gamma": 5.0}, "objective.min_snr_gamma = 5.0: it is made for epsilon and v"),
        (
            FLOW,
            {"multires_noise_iterations": 6},
            "objective.multires_noise_iterations = 6: it is made for epsilon and v",
        ),
        (FLOW, {"debiased_loss": True}, "objective.debiased_loss = True: it is made for epsilon and v"),
        (FLOW, {"scale_v_loss": True}, "objective.scale_v_loss = True: it is made for epsilon and v"),
        (EPSILON, {"scale_v_loss": True}, "objective.scale_v_loss = True: it is made for v models"),
        (
            FLOW,
            {"loss": "huber", "huber_schedule": "snr"},
            "objective.huber_schedule = 'snr': a flow model has no such",
        ),
        (FLOW, {"noise_offset": 0.1}, "objective.noise_offset = 0.1: it is made for epsilon and v"),
        (EPSILON, {"shift": 3.0}, "objective.shift = 3.0: only flow models have a shift, this one predicts epsilon"),
        (V, {"shift": "resolution"}, "objective.shift = 'resolution': only flow models"),
        (
            EPSILON,
            {"logit_mean": 0.5},
            "objective.logit_mean = 0.5: this model predicts epsilon and is trained on uniform",
        ),
        (V, {"logit_std": 2.0}, "objective.logit_std = 2.0: this model predicts v"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing(objective, settings, message):
    with pytest.raises(ConfigError) as error:
        check_objective(ObjectiveConfig(**settings), objective)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [(FLOW, {"logit_mean": 0.5, "shift": 3.0}), (EPSILON, {"timestep_sampling": "logit_normal", "logit_mean": 0.5, "noise_offset": 0.1}), (V, {"min_snr_gamma": 5.0})],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_something(objective, settings):
    check_objective(ObjectiveConfig(**settings), objective)
