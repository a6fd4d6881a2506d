"""Skip-layer guidance: the blocks are skipped as diffusers skips them, the formula is ComfyUI's, and it acts when it says so."""

import pytest
import torch

from lora_loom.trainer.config.run import GuidanceConfig, ValidationConfig
from lora_loom.trainer.diffusion.guidance import CFG
from lora_loom.trainer.diffusion.objectives import FlowMatching, shift_sigma
from lora_loom.trainer.diffusion.sample import SampleSettings, make_skip, sample
from lora_loom.trainer.diffusion.skip_layers import SkipLayers, check_skip_layers, level, skipping
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families import get
from lora_loom.trainer.sweep.cells import guidance_recipe


@pytest.fixture(scope="module")
def tiny():
    return get("sd3").tiny()


def inputs(denoiser, seed=0):
    source = torch.Generator().manual_seed(seed)
    config = denoiser.module.config
    return {
        "text": torch.randn(1, 5, config.joint_attention_dim, generator=source),
        "pooled": torch.randn(1, config.pooled_projection_dim, generator=source),
    }


def run(denoiser, noisy, conditioning, **more):
    return denoiser.module(
        hidden_states=noisy,
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=conditioning["text"],
        pooled_projections=conditioning["pooled"],
        return_dict=False,
        **more,
    )[0]


@torch.no_grad()
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_blocks_are_skipped_as_diffusers_skips_them(tiny, layers):
    denoiser, conditioning = tiny.denoiser, inputs(tiny.denoiser)
    noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = run(denoiser, noisy, conditioning)
    with skipping(denoiser.module, layers):
        ours = run(denoiser, noisy, conditioning)
    assert torch.equal(ours, run(denoiser, noisy, conditioning, skip_layers=list(layers)))
    assert torch.equal(run(denoiser, noisy, conditioning), plain), "afterwards it is as before"
    assert "forward" not in vars(denoiser.module.transformer_blocks[0])


@torch.no_grad()
def test_a_sample_follows_comfyuis_formula(tiny):
    """One step of Euler from pure noise to clean latents, calculated by hand."""
    denoiser, positive, negative = tiny.denoiser, inputs(tiny.denoiser), inputs(tiny.denoiser, 5)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    skip = SkipLayers(layers=(1,), scale=2.5, start=0.0, end=0.5)
    settings = SampleSettings(steps=1, sampler="euler", scheduler="normal", guidance=CFG(4.0), skip=skip)
    made = sample(denoiser, noise, positive, negative, settings)
    sigma_B = denoiser.objective.sigmas[-1:]
    noisy = denoiser.objective.start(noise, float(sigma_B))

    def denoised(conditioning):
        return denoiser.objective.to_denoised(noisy, denoiser.predict(noisy, sigma_B, conditioning), sigma_B)

    with skipping(denoiser.module, (1,)):
        without = denoised(positive)
    cond, uncond = denoised(positive), denoised(negative)
    assert torch.allclose(made, uncond + 4.0 * (cond - uncond) + 2.5 * (cond - without), atol=1e-5)


@torch.no_grad()
def test_outside_of_its_part_of_the_schedule_nothing_changes(tiny):
    denoiser, positive, negative = tiny.denoiser, inputs(tiny.denoiser), inputs(tiny.denoiser, 5)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))

    def made(skip):
        settings = SampleSettings(steps=4, sampler="euler", scheduler="normal", guidance=CFG(4.0), skip=skip)
        return sample(denoiser, noise, positive, negative, settings)

    late = SkipLayers(layers=(0,), start=0.9999, end=1.0)
    assert torch.equal(made(None), made(late))
    assert not torch.equal(made(None), made(SkipLayers(layers=(0,), start=0.0, end=1.0)))


@pytest.mark.parametrize("share", [0.01, 0.15, 0.5])
def test_shares_are_comfyuis_percentages(share):
    """ComfyUI's percent_to_sigma of a flow model: the shifted 1 - percent."""
    objective = FlowMatching(shift=3.0)
    assert level(objective, share) == pytest.approx(float(shift_sigma(torch.tensor(1 - share), 3.0)))
    assert (level(objective, 0.0), level(objective, 1.0)) == (float("inf"), 0.0)


def test_other_models_and_blocks_that_are_not_there_are_refused(tiny):
    network = tiny.denoiser.module
    check_skip_layers("x.skip_layers", (0, 1), network, "sd3")
    check_skip_layers("x.skip_layers", (0, 1), network, "SD3")
    with pytest.raises(ConfigError, match=r"x.skip_layers = \[7\]: this model has blocks 0 to 1"):
        check_skip_layers("x.skip_layers", (7,), network, "sd3")
    with pytest.raises(ConfigError, match="made for SD3.5, not for flux; leave it out"):
        check_skip_layers("x.skip_layers", (0,), network, "flux")
    with pytest.raises(
        ConfigError, match="skip_layer_end = 0.1: use shares of the schedule, skip_layer_start = 0.2 < "
    ):
        ValidationConfig(skip_layer_start=0.2, skip_layer_end=0.1)
    with pytest.raises(ConfigError, match="guidance.skip_layer_scale = 0.0: use a number above 0"):
        GuidanceConfig(skip_layer_scale=0.0)


def test_comfyuis_blocks_hand_on_in_their_order():
    """They are called with text and image by position, and return both in this order."""

    class Joint(torch.nn.Module):
        def forward(self, context, x, c=None, use_checkpoint=False):
            return context * 2, x * 2

    network = torch.nn.Module()
    network.joint_blocks = torch.nn.ModuleList([Joint(), Joint()])
    text, image = torch.ones(1), torch.full((1,), 3.0)
    with skipping(network, (1,)):
        assert network.joint_blocks[1](text, image, c=None) == (text, image)
        assert [float(one) for one in network.joint_blocks[0](text, image, c=None)] == [2.0, 6.0]


def test_cells_without_it_keep_their_ids():
    plain = GuidanceConfig()
    assert not any(name.startswith("skip") for name in guidance_recipe(plain))
    skipped = GuidanceConfig(skip_layers=(7, 8, 9))
    assert guidance_recipe(skipped)["skip_layers"] == (7, 8, 9)
    assert (plain.name, skipped.name) == ("CFG 4", "CFG 4, skip 7 8 9 x 3")
    assert make_skip(plain) is None
    assert make_skip(skipped) == SkipLayers(layers=(7, 8, 9))
