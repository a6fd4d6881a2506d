"""Sampling end to end on data whose best denoiser is known, and against diffusers' own schedulers."""

import math
from types import SimpleNamespace

import pytest
import torch

from lora_loom.trainer.choices import SAMPLERS
from lora_loom.trainer.config.run import GuidanceConfig
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction
from lora_loom.trainer.diffusion.sample import SampleSettings, make_guidance, sample, start_noise
from lora_loom.trainer.diffusion.samplers import schedule

SPREAD, CENTRE = 0.5, 1.5
OBJECTIVES = [Epsilon(), VPrediction(), FlowMatching(), FlowMatching(shift=3.0)]


class Ideal:
    """The network that predicts best for data N(centre, spread^2): E[target | noisy]. The prompt is the centre."""

    def __init__(self, objective):
        self.objective, self.calls = objective, []

    def predict(self, noisy_BCHW, sigma_B, conditioning):
        self.calls.append(conditioning["centre"])
        sigma, centre = sigma_B.reshape(-1, 1, 1, 1), conditioning["centre"]
        keep = 1 - sigma if self.objective.name == "flow" else torch.ones_like(sigma)
        gain = keep * SPREAD**2 / (keep**2 * SPREAD**2 + sigma**2)
        clean = centre + gain * (noisy_BCHW - keep * centre)
        return self.objective.target(clean, (noisy_BCHW - keep * clean) / sigma, sigma_B)


def run(objective, sampler, steps=60, guidance=None, centre=CENTRE, scheduler="normal"):
    denoiser = Ideal(objective)
    settings = SampleSettings(
        steps=steps,
        sampler=sampler,
        scheduler=scheduler,
        guidance=guidance or make_guidance(GuidanceConfig(method="cfg", scale=1.0)),
    )
    noise = start_noise((4, 40, 40), 3, torch.device("cpu"))
    return sample(denoiser, noise, {"centre": centre}, {"centre": 0.0}, settings), denoiser


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_distribution_of_the_data_is_reached(objective, sampler):
    """Whatever is predicted and however it is integrated: the ideal network's pictures have the data's mean and spread."""
    pictures, _ = run(objective, sampler)
    assert pictures.mean().item() == pytest.approx(CENTRE, abs=0.06)
    assert pictures.std().item() == pytest.approx(SPREAD, rel=0.09)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_guidance_one_asks_once_and_more_asks_twice(objective):
    _, denoiser = run(objective, "euler", steps=3)
    assert denoiser.calls == [CENTRE] * 3
    _, denoiser = run(objective, "euler", steps=3, guidance=make_guidance(GuidanceConfig(method="cfg", scale=2.0)))
    assert denoiser.calls == [CENTRE, 0.0] * 3


def test_what_is_watched_ends_in_the_image():
    """Of Euler: an estimate of the clean latents for each step, guided, and the last one is the image."""
    settings = SampleSettings(
        steps=7,
        sampler="euler",
        scheduler="normal",
        guidance=make_guidance(GuidanceConfig(method="cfg", scale=2.0)),
    )
    noise, seen = start_noise((4, 8, 8), 3, torch.device("cpu")), []
    latents = sample(
        Ideal(FlowMatching()), noise, {"centre": CENTRE}, {"centre": 0.0}, settings, watch=lambda clean: seen.append(clean.clone())
    )  # fmt: skip
    assert len(seen) == 7
    assert torch.allclose(seen[-1], latents, atol=1e-4)
    assert [(one - latents).norm() for one in seen] == sorted([(one - latents).norm() for one in seen], reverse=True)


def test_guidance_moves_away_from_the_negative():
    """CFG of scale 2 on two Gaussians of one spread is the ideal network of centre 2 c: the mean lands there.

    But for what the start lacks: it has no mean yet, and sigma_max is not infinite, so spread / sigma_max of it is missing.
    """
    pictures, _ = run(Epsilon(), "heun", guidance=make_guidance(GuidanceConfig(method="cfg", scale=2.0)))
    lost = SPREAD / math.hypot(SPREAD, Epsilon().sigmas[-1].item())
    assert pictures.mean().item() == pytest.approx(2 * CENTRE * (1 - lost), abs=0.02)
    same, _ = run(Epsilon(), "heun", guidance=make_guidance(GuidanceConfig(method="apg", scale=2.0, eta=1.0)))
    assert torch.allclose(pictures, same, atol=1e-4)


def test_unknown_guidance():
    with pytest.raises(ValueError, match="known are cfg, apg"):
        make_guidance(SimpleNamespace(method="xfg", scale=2.0, rescale=0.0))


def test_start_noise_is_the_hosts():
    """ComfyUI's prepare_noise: torch.manual_seed(seed), randn on the CPU; here without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = torch.randn(1, 4, 8, 8)
    assert torch.equal(start_noise((4, 8, 8), 5, torch.device("cpu")), expected)


def test_euler_on_flow_is_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs, objective = FlowMatchEulerDiscreteScheduler(shift=1.0), FlowMatching(shift=3.0)
    sigmas = schedule(objective, "simple", 8)
    theirs.set_timesteps(sigmas=sigmas[:-1])
    network, latents = Ideal(objective), start_noise((4, 8, 8), 0, torch.device("cpu"))
    mine = SAMPLERS["euler"].load()(
        lambda x, s: objective.to_denoised(x, network.predict(x, torch.tensor([s]), {"centre": 1.0}), torch.tensor([s])),
        latents, sigmas, lambda *p: None,
    )  # fmt: skip
    for time, sigma in zip(theirs.timesteps, sigmas, strict=False):
        latents = theirs.step(network.predict(latents, torch.tensor([sigma]), {"centre": 1.0}), time, latents)[0]
    assert torch.allclose(mine, latents, atol=1e-5)


def test_ddim_on_epsilon_is_diffusers():
    """diffusers works in the DDPM scaling, x / sqrt(1 + sigma^2): the same steps at the same timesteps."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    theirs.set_timesteps(10)
    objective, times = Epsilon(), theirs.timesteps
    sigmas = [objective.sigmas[int(time)].item() for time in times]
    last = math.sqrt((1 - theirs.final_alpha_cumprod.item()) / theirs.final_alpha_cumprod.item())
    network, noise = Ideal(objective), start_noise((4, 8, 8), 1, torch.device("cpu"))

    def epsilon(x, sigma):
        return network.predict(x, torch.tensor([sigma]), {"centre": 1.0})

    start = objective.start(noise, sigmas[0])
    mine = SAMPLERS["ddim"].load()(lambda x, s: x - s * epsilon(x, s), start, [*sigmas, last], lambda *p: None)
    scaled = start / math.sqrt(1 + sigmas[0] ** 2)
    for time, sigma in zip(times, sigmas, strict=True):
        scaled = theirs.step(epsilon(scaled * math.sqrt(1 + sigma**2), sigma), time, scaled)[0]
    assert torch.allclose(mine / math.sqrt(1 + last**2), scaled, atol=2e-4)
