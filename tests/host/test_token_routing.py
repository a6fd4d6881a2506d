"""Token routing in ComfyUI: its networks predict what diffusers' do with the same tokens left out."""

import pytest
import torch
from safetensors.torch import save_file

from lora_loom.trainer.diffusion.token_routing import routing
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.types import Route
from scripts.host_toys import TOYS, toy_inputs
from tests.families.test_host_gradients import load_toy
from tests.families.test_native_files import toy_conditioning, weights

from .programs import run_inside

pytestmark = pytest.mark.comfyui
NAMES = ("flux-dev", "sd3", "qwen", "chroma", "flux2-klein")


@pytest.fixture(scope="module")
def found():
    return run_inside("token_routing", *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_front_ends_route_alike(found, name, tmp_path):
    if found[name] is None:
        pytest.skip("this version of ComfyUI cannot build the toy")
    save_file(weights(name), tmp_path / "model.safetensors")
    family, denoiser = load_toy(name, tmp_path / "model.safetensors")
    inputs = toy_inputs(TOYS[name])
    noisy = denoiser.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])
    routes, place = (Route(first=0, last=-1, ratio=0.5),), StepKey(seed=0, step=3, micro_batch=1)
    with routing(denoiser.module, routes, place):
        mine = denoiser.predict(noisy, inputs["sigma"], toy_conditioning(TOYS[name], family, inputs)).detach().flatten()
    theirs = torch.tensor(found[name]["predicts"])
    assert (mine - theirs).norm() < 1e-4 * theirs.norm()
    assert found[name]["moves"] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_blocks_take_the_same_tokens(found, name):
    if found[name] is None:
        pytest.skip("this version of ComfyUI cannot build the toy")
    assert found[name]["size"] > 0
    assert found[name]["same bits"]


def test_others_are_refused_by_name(found):
    said = found["refused"]
    assert said.pop("flux-dev") == ""
    assert all("there is token routing for Flux" in text for text in said.values()), said
