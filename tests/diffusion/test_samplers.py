"""Integrators on problems whose answer is known, and schedules against ComfyUI's formulae."""

import itertools
import math

import pytest
import torch

from lora_loom.trainer.choices import SAMPLERS
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching
from lora_loom.trainer.diffusion.samplers import schedule

OBJECTIVES = [Epsilon(), FlowMatching(shift=3.0), FlowMatching(shift=1.0)]


def silent(done, total):
    pass


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_perfect_denoiser_is_reached_exactly(sampler, objective):
    """If every denoised estimate is the same picture, every integrator ends on it."""
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = schedule(objective, "normal", 8)
    start = objective.start(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)), sigmas[0])
    result = SAMPLERS[sampler].load()(lambda noisy, sigma: latents, start, sigmas, silent)
    assert torch.allclose(result, latents, atol=1e-4)


def gaussian_denoiser(spread):
    """The ideal denoiser of data that is N(0, spread^2), noised by x0 + sigma n: the exact flow is known."""
    return lambda noisy, sigma: noisy * spread**2 / (spread**2 + sigma**2)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_convergence_order(sampler, order):
    """Halving the step divides the error by about 2^order (exact solution: x scales as sqrt(spread^2 + sigma^2))."""
    spread, start = 0.5, torch.tensor([[1.0]], dtype=torch.float64)

    def error(steps):
        # Ends at sigma 0.1: the last step to 0 is of first order in all of them by construction.
        sigmas = torch.logspace(math.log10(10), math.log10(0.1), steps + 1, dtype=torch.float64).tolist()
        result = SAMPLERS[sampler].load()(gaussian_denoiser(spread), start, sigmas, silent)
        exact = start * math.sqrt((spread**2 + 0.1**2) / (spread**2 + 10**2))
        return (result - exact).abs().item()

    measured = math.log2(error(40) / error(80))
    assert measured == pytest.approx(order, abs=0.35)


def test_ddim_equals_euler_at_equal_noise_levels():
    sigmas = schedule(Epsilon(), "karras", 12)
    start = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * sigmas[0]
    results = [SAMPLERS[name].load()(gaussian_denoiser(1.0), start, sigmas, silent) for name in ("euler", "ddim")]
    assert torch.allclose(*results, rtol=1e-9)


@pytest.mark.parametrize("name", ["normal", "simple", "karras", "sgm_uniform"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_schedules_fall_from_the_top_to_zero(name, objective, steps):
    sigmas = schedule(objective, name, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(objective.sigmas[-1].item(), rel=1e-5)
    assert sigmas[-1] == 0
    assert all(high > low for high, low in itertools.pairwise(sigmas))


def test_worked_schedules():
    """SD1 at 3 "normal" steps uses timesteps 999, 499.5 and 0; flow with shift 3 at 2 "simple" steps 1.0 and 0.75."""
    epsilon = Epsilon()
    middle = math.exp((epsilon.sigmas[499].log() + epsilon.sigmas[500].log()).item() / 2)
    expected = [epsilon.sigmas[999].item(), middle, epsilon.sigmas[0].item(), 0.0]
    assert schedule(epsilon, "normal", 3) == pytest.approx(expected, rel=1e-4)
    assert schedule(FlowMatching(shift=3.0), "simple", 2) == pytest.approx([1.0, 0.75, 0.0])


def test_karras_worked_value():
    """Karras et al. eq. 5 with rho 7, the middle of three."""
    low, high = Epsilon().sigmas[0].item(), Epsilon().sigmas[-1].item()
    middle = ((high ** (1 / 7) + low ** (1 / 7)) / 2) ** 7
    assert schedule(Epsilon(), "karras", 3)[1] == pytest.approx(middle, rel=1e-5)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="normal, simple, karras"):
        schedule(Epsilon(), "nromal", 3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_every_step(sampler):
    seen = []
    SAMPLERS[sampler].load()(
        gaussian_denoiser(1.0), torch.ones(1, 1), schedule(Epsilon(), "normal", 5), lambda *p: seen.append(p)
    )
    assert seen == [(i + 1, 5) for i in range(5)]
