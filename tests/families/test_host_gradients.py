"""Training computes what ComfyUI's own classes compute: loss and weight gradients of the same toys, recorded there.

`scripts/record_host_gradients.py` made the fixture. The gradients are those of our modules' weights, put back into the
layout of the original file: q, k and v side by side, halves in the host's order.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.diffusion.timesteps import NoiseLevels, Uniform
from lora_loom.trainer.families.common.keymap import to_native
from lora_loom.trainer.families.common.modules import checkpoint_blocks
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.training.step import LossSettings, sample_loss
from lora_loom.trainer.types import Batch
from scripts.host_toys import HEADLESS, PRODUCTS, TOYS, gradient_summary, toy_inputs
from tests.conftest import HOST_FIXTURES
from tests.families.test_native_files import CPU, READERS, record, toy_conditioning, weights

RECORDED = load_file(HOST_FIXTURES / "gradients.safetensors")
MSE = LossSettings(noise_levels=NoiseLevels(law=Uniform()))


@pytest.fixture(scope="module", params=HEADLESS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def toy_file(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "model.safetensors"
    save_file(weights(name), path)
    return path


def load_toy(name, path):
    source = open_source(str(path))
    family, variant = families.choose("auto", TOYS[name].variant, source)
    return family, family.load_denoiser(source, variant, CPU)


def toy_loss(name, family, denoiser):
    """The engine's loss of each sample, (B,), for the toy's latents, noise and noise levels."""
    inputs = toy_inputs(TOYS[name])
    batch = Batch(
        latents_BCHW=inputs["latents"],
        conditioning=toy_conditioning(TOYS[name], family, inputs),
        weight_B=torch.ones(2),
        mask_B1HW=None,
        names=("a", "b"),
    )
    return sample_loss(denoiser, batch, inputs["noise"], inputs["sigma"], MSE)


def weight_gradients(name, family, denoiser):
    """{original key: gradient of the mean loss} of every matrix and kernel."""
    trained = {key: p for key, p in denoiser.module.named_parameters() if key.endswith(".weight") and p.ndim > 1}
    for weight in trained.values():
        weight.requires_grad_(True)
    loss_B = toy_loss(name, family, denoiser)
    found = torch.autograd.grad(loss_B.mean(), list(trained.values()), allow_unused=True)
    mine = {key: torch.zeros_like(w) if g is None else g for (key, w), g in zip(trained.items(), found, strict=True)}
    _, keymap = READERS[TOYS[name].family]({key: tuple(shape) for key, shape in record(name)["keys"].items()})
    return loss_B.detach(), to_native(mine, keymap)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_comfyuis(name, toy_file, checkpointing):
    family, denoiser = load_toy(name, toy_file)
    if checkpointing:
        checkpoint_blocks(denoiser.module)
    loss_B, gradients = weight_gradients(name, family, denoiser)
    assert torch.allclose(loss_B, RECORDED[f"{name}.loss"], rtol=1e-5)
    expected, found = RECORDED[f"{name}.gradients"], gradient_summary(gradients)
    assert len(found) == len(expected) > 20
    size = expected[:, :1].clamp_min(1e-4 * expected[:, 0].max())  # some layers hardly matter, and hold only rounding
    for key, error in zip(sorted(gradients), ((found - expected).abs() / size).amax(1).tolist(), strict=True):
        assert error < 1e-4, key


def test_the_comparison_sees_a_swap(name, toy_file):
    """Another order of rows, or one gradient scaled by a thousandth, would fail it."""
    family, denoiser = load_toy(name, toy_file)
    _, gradients = weight_gradients(name, family, denoiser)
    expected = gradient_summary(gradients)
    assert expected.shape[1] == 1 + PRODUCTS
    key = max(gradients, key=lambda k: gradients[k].norm())
    row = sorted(gradients).index(key)
    for wrong in (gradients[key].roll(1, 0), gradients[key] * 1.001):
        changed = gradient_summary({**gradients, key: wrong})
        assert ((changed - expected).abs() / expected[:, :1])[row].max() > 5e-4


def test_adapter_gradients_are_those_of_the_effective_weight(name, toy_file):
    """At B = 0 dL/dB is s dW A^T and dL/dA is 0, where dW is the gradient of the base's weight: ComfyUI's, as above."""
    family, denoiser = load_toy(name, toy_file)
    paths = resolve_targets(denoiser.module, denoiser.target_presets, "attention")
    own = {path: denoiser.module.get_submodule(path).weight for path in paths}
    for weight in own.values():
        weight.requires_grad_(True)
    gradients = dict(zip(own, torch.autograd.grad(toy_loss(name, family, denoiser).mean(), list(own.values()), allow_unused=True), strict=True))  # fmt: skip
    adapter = inject(denoiser.module, paths, NetworkConfig(rank=4, alpha=2.0), seed=0)
    toy_loss(name, family, denoiser).mean().backward()
    checked = 0
    for path, gradient in gradients.items():
        down, up = (adapter.parameters()[f"{path}|lora_{side}.weight"] for side in "AB")
        if gradient is None:
            assert up.grad is None or not up.grad.any()
            continue
        expected = 0.5 * gradient.flatten(1) @ down.flatten(1).T
        assert (up.grad.flatten(1) - expected).norm() <= 1e-4 * expected.norm().clamp_min(1e-6), path
        assert not down.grad.any()
        checked += 1
    assert checked > 5
