"""The file of a full fine-tune in a real ComfyUI: no key is missing or of no use, and it predicts what was trained."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, NetworkConfig, OptimizerConfig
from lora_loom.trainer.full.model_file import ModelFile
from lora_loom.trainer.full.network import trained_part, whole_targets
from lora_loom.trainer.training.loop import LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.types import Batch
from scripts.host_toys import HEADLESS, TOYS, toy_inputs
from tests.families.test_host_gradients import MSE, load_toy
from tests.families.test_native_files import toy_conditioning, weights

from .programs import run_inside
from .test_headless_loras import OneBatch, denoised

pytestmark = pytest.mark.comfyui
WHOLE = NetworkConfig(kind="full")
RATE = 3e-4


def train_whole(name, base, path):
    """Train every weight of a toy for two steps and write its file; returns (denoised before, after)."""
    family, denoiser = load_toy(name, base)
    inputs = toy_inputs(TOYS[name])
    cond = toy_conditioning(TOYS[name], family, inputs)
    before = denoised(denoiser, inputs, cond)
    paths = whole_targets(denoiser.module, denoiser.target_presets, WHOLE)
    part = trained_part(denoiser.module, paths, WHOLE, seed=0)
    optimizer = make_optimizer(part.parameters().values(), OptimizerConfig(learning_rate=RATE))
    batch = Batch(latents_BCHW=inputs["latents"], conditioning=cond, weight_B=torch.ones(2), mask_B1HW=None, names=("a", "b"))  # fmt: skip
    steps = fit(denoiser, Training(adapter=part, optimizer=optimizer), OneBatch(batch), LoopSettings(loss=MSE, seed=0), lambda step: RATE)  # fmt: skip
    for _ in range(2):
        next(steps)
    written = open_base(ModelConfig(base=str(base), variant=TOYS[name].variant, device="cpu"))
    ModelFile(base=written, dtype=torch.float32).write(part.parameters(), {}, path)
    return before, denoised(denoiser, inputs, cond)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """({toy: (denoised before, after)}, {toy: what ComfyUI's model denoises}, {toy: what loading said})."""
    folder, bases, mine = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("bases"), {}
    for name in HEADLESS:
        save_file(weights(name), bases / f"{name}.safetensors")
        mine[name] = train_whole(name, bases / f"{name}.safetensors", folder / f"{name}.safetensors")
    told = run_inside("models", folder)
    return mine, {name: load_file(folder / f"{name}.denoised")["denoised"] for name in HEADLESS}, told


@pytest.mark.parametrize("name", HEADLESS)
def test_the_model_loads_whole_and_predicts_what_was_trained(found, name):
    mine, hosts, told = (part[name] for part in found)
    before, after = mine
    effect = (after - before).norm()
    assert effect > 1e-3 * before.norm()
    assert (hosts - after).norm() < 1e-3 * effect + 1e-5 * after.norm()
    assert [line for line in told if "missing" in line or "unexpected" in line] == []
