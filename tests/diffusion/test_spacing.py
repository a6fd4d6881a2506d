"""Zero-terminal SNR and the spacings of sampling steps against diffusers, and noise levels of single sets."""

import pytest
import torch
from diffusers import DDIMScheduler

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, ObjectiveConfig
from lora_loom.trainer.diffusion.objectives import Epsilon, FlowMatching, VPrediction, with_zero_terminal_snr
from lora_loom.trainer.diffusion.samplers import ddim_uniform, normal, simple
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.loss_settings import check_objective
from lora_loom.trainer.training.step import LossSettings, draw
from lora_loom.trainer.types import Batch
from tests.conftest import tiny_folder

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("objective", [Epsilon(), VPrediction()], ids=["epsilon", "v"])
def test_rescaled_levels_are_diffusers(objective):
    """All but the last, which diffusers takes as infinite and ComfyUI as 4,518."""
    there = DDIMScheduler(**BETAS, rescale_betas_zero_snr=True).alphas_cumprod.double()
    rescaled = with_zero_terminal_snr(objective)
    here = 1 / (1 + rescaled.sigmas.double().square())
    assert torch.allclose(here[:-1], there[:-1], atol=1e-6)
    assert float(rescaled.snr(rescaled.sigmas[-1:])) < 1e-6
    assert type(rescaled) is type(objective)
    assert rescaled.start(torch.ones(1), float(rescaled.sigmas[-1])) == pytest.approx(
        float(rescaled.sigmas[-1]), rel=1e-6
    )


def test_flow_models_have_none():
    with pytest.raises(ValueError, match="no table of betas"):
        with_zero_terminal_snr(FlowMatching())
    with pytest.raises(ConfigError, match="zero_terminal_snr = True: it is made for epsilon and v models"):
        check_objective(ObjectiveConfig(zero_terminal_snr=True), FlowMatching())


def test_a_base_has_it_in_training_and_in_samples():
    model, asked = ModelConfig(base=str(tiny_folder("sd")), device="cpu"), ObjectiveConfig(zero_terminal_snr=True)
    base = open_base(model, objective=asked)
    assert base.settings.objective == Epsilon(zero_terminal_snr=True)
    assert base.load_denoiser(model, "float32").objective == base.settings.objective
    assert base.skeleton().objective == base.settings.objective
    assert any("at pure noise an epsilon model has nothing to predict" in one for one in base.warnings())
    assert open_base(model).load_denoiser(model, "float32").objective == Epsilon()
    flow = ModelConfig(base=str(tiny_folder("sd3")), device="cpu")
    with pytest.raises(ConfigError, match="sd3 .* is a flow model, which begins at pure noise anyway"):
        open_base(flow, objective=asked)


@pytest.mark.parametrize("steps", [4, 10, 20, 25, 50])
@pytest.mark.parametrize(
    ("spacing", "made"),
    [("linspace", normal), ("trailing", simple), ("leading", ddim_uniform)],
    ids=["linspace", "trailing", "leading"],
)
def test_spacings_of_diffusers_have_names_here(spacing, made, steps):
    """diffusers rounds linspace to whole timesteps; ours lie within half a timestep of it."""
    there = DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    there.set_timesteps(steps)
    sigmas = Epsilon().sigmas
    wanted = sigmas[there.timesteps]
    got = torch.tensor(made(Epsilon(), steps))
    assert len(got) == steps
    near = 0.5 * (sigmas[1:] / sigmas[:-1]).log().max() if spacing == "linspace" else 1e-6
    assert float((got / wanted).log().abs().max()) <= float(near)


class Seen:
    """A denoiser of which only the objective is asked."""

    objective = FlowMatching()


def batch(ranges):
    count = len(ranges)
    return Batch(
        latents_BCHW=torch.zeros(count, 4, 8, 8),
        conditioning={},
        weight_B=torch.ones(count),
        mask_B1HW=None,
        names=("x",) * count,
        shares=tuple((slot + 0.5) / count for slot in range(count)),
        ranges=tuple(ranges),
    )


@pytest.mark.parametrize("spread", [False, True])
def test_each_sample_has_the_noise_levels_of_its_set(spread):
    settings = LossSettings(noise_levels=NoiseLevels(law=Uniform(), low=0.4, high=0.6), spread=spread)
    limits = [(0.0, 0.2), None, (0.8, 1.0)] * 20
    _, sigma_B = draw(Seen(), batch(limits), settings, StepKey(seed=0, step=0, micro_batch=0))
    _, plain_B = draw(Seen(), batch([None] * 60), settings, StepKey(seed=0, step=0, micro_batch=0))
    for slot, (low, high) in enumerate(one or (0.4, 0.6) for one in limits):
        assert low <= float(sigma_B[slot]) <= high
    assert torch.equal(sigma_B[1::3], plain_B[1::3]), "the others are what they were"
