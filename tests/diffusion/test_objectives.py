"""Objectives: noising and denoising invert each other; tables equal the papers' and the host's."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction, shift_sigma
from tests.conftest import HOST_FIXTURES

HOST = HOST_FIXTURES
OBJECTIVES = [Epsilon(), VPrediction(), VPrediction(zero_terminal_snr=True), FlowMatching(), FlowMatching(shift=3.0)]


def pair(seed, shape=(3, 4, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@given(u=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_true_target_denoises_to_the_latents(objective, u, seed):
    latents, noise = pair(seed)
    sigma = objective.sigma_at(torch.full((3,), u))
    noisy = objective.add_noise(latents, noise, sigma)
    restored = objective.to_denoised(noisy, objective.target(latents, noise, sigma), sigma)
    scale = max(1.0, sigma.max().item())  # subtracting sigma * noise from sigma * noise + x0 loses digits
    assert torch.allclose(restored, latents, atol=2e-5 * scale)


def test_worked_values():
    """x0 = 2, noise = -1. Flow at 0.25: 0.75 * 2 - 0.25 = 1.25, velocity noise - x0 = -3. Epsilon at 0.5: 2 - 0.5, and -1.

    v at sigma 0.75 (abar = 0.64): sqrt(abar) noise - sqrt(1 - abar) x0 = -0.8 - 1.2. Signs are the papers': a pair of
    wrong ones in target and to_denoised would still invert each other.
    """
    latents, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), -1.0)

    def at(objective, sigma):
        level = torch.tensor([sigma])
        return objective.add_noise(latents, noise, level).item(), objective.target(latents, noise, level).item()

    assert at(FlowMatching(shift=3.0), 0.25) == pytest.approx((1.25, -3.0))
    assert at(Epsilon(), 0.5) == pytest.approx((1.5, -1.0))
    assert at(VPrediction(), 0.75) == pytest.approx((1.25, -2.0))
    assert FlowMatching().timestep(torch.tensor([0.25])).item() == 250
    assert FlowMatching().sigma_at(torch.tensor([0.25])).item() == 0.25


def test_training_timesteps_are_the_integers_0_to_999():
    """t = floor(1000 u), every one equally often (algorithms D4)."""
    epsilon = Epsilon()
    sigma = epsilon.sigma_at((torch.arange(4000) + 0.5) / 4000)
    assert torch.equal(epsilon.timestep(sigma), torch.arange(1000).repeat_interleave(4))
    assert epsilon.sigma_at(torch.tensor([1.0])).item() == epsilon.sigmas[-1].item()


def test_the_schedule_of_betas_is_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
    mine = 1 / (1 + Epsilon().sigmas.double() ** 2)
    assert torch.allclose(mine, theirs, rtol=2e-4)
    rescaled = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    mine = 1 / (1 + VPrediction(zero_terminal_snr=True).sigmas.double() ** 2)
    assert torch.allclose(mine[:-1], rescaled[:-1], rtol=2e-3, atol=1e-6)


def test_flow_ends_are_latents_and_noise():
    latents, noise = pair(0)
    flow = FlowMatching()
    assert torch.equal(flow.add_noise(latents, noise, torch.zeros(3)), latents)
    assert torch.equal(flow.add_noise(latents, noise, torch.ones(3)), noise)


def test_epsilon_network_input_has_the_ddpm_form():
    """x / sqrt(sigma^2 + 1) is sqrt(abar) x0 + sqrt(1 - abar) noise."""
    latents, noise = pair(1)
    epsilon = Epsilon()
    sigma = epsilon.sigmas[[10, 500, 990]]
    abar = (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
    expected = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    assert torch.allclose(epsilon.network_input(epsilon.add_noise(latents, noise, sigma), sigma), expected, atol=1e-5)


def test_v_target_is_the_papers():
    """v = sqrt(abar) noise - sqrt(1 - abar) x0 (arXiv 2202.00512)."""
    latents, noise = pair(2)
    v = VPrediction()
    sigma = v.sigmas[[10, 500, 990]]
    abar = (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
    assert torch.allclose(v.target(latents, noise, sigma), abar.sqrt() * noise - (1 - abar).sqrt() * latents, atol=1e-5)


def test_scaled_linear_betas_worked_value():
    """SD1's first and last noise levels, as every k-diffusion user knows them."""
    assert Epsilon().sigmas[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert Epsilon().sigmas[-1].item() == pytest.approx(14.6146, abs=1e-3)


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_noise():
    plain, rescaled = VPrediction().sigmas, VPrediction(zero_terminal_snr=True).sigmas
    assert rescaled[0].item() == pytest.approx(plain[0].item(), rel=1e-4)
    assert rescaled[-1].item() == pytest.approx(4518.76, rel=1e-3)
    assert (rescaled.diff() > 0).all()


@pytest.mark.parametrize("objective", [Epsilon(), FlowMatching(shift=3.0), FlowMatching(shift=1.0)], ids=str)
def test_timestep_and_sigma_invert(objective):
    if isinstance(objective, FlowMatching):
        times = torch.linspace(1, 1000, 7)
        assert torch.allclose(shift_sigma(times / 1000, objective.shift), objective.sigma_of(times))
    else:
        index = torch.tensor([0, 1, 250, 998, 999])
        assert torch.equal(objective.timestep(objective.sigma_of(index.float())), index)


def test_discrete_timestep_is_the_nearest_in_log_space():
    epsilon = Epsilon()
    between = (epsilon.sigmas[100].log() * 0.6 + epsilon.sigmas[101].log() * 0.4).exp()
    assert epsilon.timestep(between.reshape(1)).item() == 100


@given(sigma=st.floats(0.001, 1), shift=st.floats(0.1, 10))
def test_shift_keeps_the_ends_and_inverts(sigma, shift):
    value = torch.tensor(sigma, dtype=torch.float64)
    assert shift_sigma(shift_sigma(value, shift), 1 / shift).item() == pytest.approx(sigma, rel=1e-9)
    assert shift_sigma(torch.tensor(1.0), shift).item() == pytest.approx(1.0)
    # The same law in the papers' other form: e^mu / (e^mu + 1/sigma - 1).
    assert shift_sigma(value, shift).item() == pytest.approx(shift / (shift + 1 / sigma - 1), rel=1e-9)


def test_snr():
    assert Epsilon().snr(torch.tensor([2.0])).item() == pytest.approx(0.25)
    assert FlowMatching().snr(torch.tensor([0.5])).item() == pytest.approx(1.0)
    assert math.isfinite(FlowMatching().snr(torch.zeros(1)).item())


@pytest.mark.parametrize("toy", ["sd1", "sd2", "sdxl", "sd3", "flux-dev", "flux-schnell"])
def test_noise_levels_equal_the_hosts(toy):
    from lora_loom.trainer.families import get
    from scripts.host_toys import TOYS

    recorded = json.loads((HOST / f"{toy}.json").read_text())["sigma_min_max"]
    objective = get(TOYS[toy].family).variants[TOYS[toy].variant].objective
    assert [objective.sigmas[0].item(), objective.sigmas[-1].item()] == pytest.approx(recorded, rel=1e-5)
