"""Timestep laws: worked values, distributions against their closed forms, and independence of any global state."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lora_loom.trainer.config.run import ObjectiveConfig
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching
from lora_loom.trainer.diffusion.timesteps import Beta, Listed, LogitNormal, Mode, NoiseLevels, ResolutionShift, Uniform
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.seeding import generator

DRAWS = 4000


def draws(law, seed=3):
    return np.array([law.draw(generator(seed, i)).item() for i in range(DRAWS)])


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(), stats.uniform.cdf),
        (LogitNormal(0.5, 0.8), lambda x: stats.norm.cdf((np.log(x / (1 - x)) - 0.5) / 0.8)),
        (Beta(2.0, 3.0), stats.beta(2.0, 3.0).cdf),
        (Mode(0.0), stats.uniform.cdf),
    ],
    ids=["uniform", "logit-normal", "beta", "mode-0"],
)
def test_draws_follow_the_law(law, cdf):
    """Kolmogorov-Smirnov: a wrong law of this size would have p below 1e-6; the seed is fixed, so this never flickers."""
    assert stats.kstest(draws(law), cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("law", "distribution"),
    [
        (Uniform(), stats.uniform),
        (LogitNormal(0.5, 0.8), None),
        (Beta(2.0, 3.0), stats.beta(2.0, 3.0)),
        (Beta(0.5, 0.5), stats.beta(0.5, 0.5)),
        (Beta(1.0, 4.0), stats.beta(1.0, 4.0)),
    ],
    ids=["uniform", "logit-normal", "beta", "arcsine", "beta-1-4"],
)
def test_the_law_at_a_uniform_number_is_its_quantile(law, distribution):
    for u in (0.0, 1e-3, 0.25, 0.5, 0.9, 0.999):
        expected = distribution.ppf(u) if distribution else 1 / (1 + np.exp(-(0.5 + 0.8 * stats.norm.ppf(u))))
        assert law.at(torch.tensor(u)).item() == pytest.approx(expected, abs=2e-4), u


def test_a_shifted_level_at_a_uniform_number_is_that_of_the_draw():
    levels = NoiseLevels(law=Uniform(), shift=3.0, low=0.1, high=0.9)
    drawn = levels.draw(FlowMatching(), 8, 8, generator(7))
    share = torch.rand((), generator=generator(7)).item()
    assert levels.at(FlowMatching(), 8, 8, share) == drawn


def test_mode_law_is_the_papers_function_of_u():
    """f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), arXiv 2403.03206 eq. 20."""
    law = Mode(1.29)
    u = torch.rand((), generator=generator(5)).item()
    expected = 1 - u - 1.29 * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    assert law.draw(generator(5)).item() == pytest.approx(expected, abs=1e-6)


@given(u=st.floats(0, 1), scale=st.floats(-1.0, 1.75))
def test_mode_stays_inside(u, scale):
    value = 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    assert -1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize(("side", "expected"), [(512, 1.88), (768, 2.33), (1024, 3.16)])
def test_flux_resolution_shift(side, expected):
    assert ResolutionShift().at(side // 8, side // 8) == pytest.approx(expected, abs=5e-3)


def test_qwen_resolution_shift():
    assert ResolutionShift(max_tokens=8192, max_shift=0.9).at(128, 128) == pytest.approx(2.00, abs=5e-3)


def test_resolution_shift_counts_patches_not_pixels():
    assert ResolutionShift().at(64, 64) == ResolutionShift().at(32, 128)
    assert ResolutionShift().at(32, 32) == pytest.approx(math.exp(0.5))


def test_shift_applies_to_flow_only():
    levels = NoiseLevels(law=Uniform(), shift=3.0)
    u = torch.tensor([0.5])
    assert levels.sigma(FlowMatching(), 8, 8, u).item() == pytest.approx(0.75)
    epsilon = Epsilon()
    assert levels.sigma(epsilon, 8, 8, u).item() == pytest.approx(epsilon.sigmas[500].item())


def test_range_of_trained_levels():
    levels = NoiseLevels(law=Uniform(), low=0.2, high=0.4)
    values = [levels.draw(FlowMatching(), 8, 8, generator(1, i)).item() for i in range(200)]
    assert 0.2 <= min(values) < 0.22
    assert 0.38 < max(values) <= 0.4


def test_a_list_is_drawn_from_as_often_as_its_numbers_stand_there():
    shares = (*[1.0] * 7, 0.75, 0.5, 0.25)
    found, counts = np.unique(draws(Listed(shares)), return_counts=True)
    assert found.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert stats.chisquare(counts, np.array([1, 1, 1, 7]) / 10 * DRAWS).pvalue > 0.01
    assert [Listed(shares).at(torch.tensor(u)).item() for u in (0.0, 0.69, 0.71, 0.999)] == [1.0, 1.0, 0.75, 0.25]
    levels = NoiseLevels(law=Listed((1.0, 0.5)), shift=1.0)
    assert {levels.draw(FlowMatching(), 8, 8, generator(at)).item() for at in range(20)} == {1.0, 0.5}


def test_a_list_has_numbers_from_0_to_1():
    for wrong in ({"timestep_sampling": "list"}, {"timestep_sampling": "list", "timestep_list": (1.5,)}):
        with pytest.raises(ConfigError, match="timestep_list"):
            ObjectiveConfig(**wrong)


def test_laws_made_without_parameters_are_those_of_the_configuration():
    defaults = ObjectiveConfig()
    assert Beta() == Beta(*defaults.beta)
    assert LogitNormal() == LogitNormal(defaults.logit_mean, defaults.logit_std)


def test_draws_touch_no_global_generator():
    before = torch.get_rng_state()
    for law in (Uniform(), LogitNormal(), Mode(), Beta(), Listed((0.5, 1.0))):
        assert law.draw(generator(0)) == law.draw(generator(0))
    assert torch.equal(before, torch.get_rng_state())
