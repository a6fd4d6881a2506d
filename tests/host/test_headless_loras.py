"""A LoRA trained headless, saved, and loaded by ComfyUI's own loader does there what its adapter did while training."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.state_dict import to_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.layouts import Formats
from lora_loom.trainer.training.loop import LoopSettings, Training, fit
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.types import Batch
from scripts.host_toys import HEADLESS, TOYS, toy_inputs
from tests.families.test_host_gradients import MSE, load_toy
from tests.families.test_native_files import toy_conditioning, weights

from .programs import run_inside

pytestmark = pytest.mark.comfyui
KINDS = ("lora", "dora", "loha", "lokr")
LAYOUTS = ("native", "kohya")
"""What `convert` makes for programs that, like ComfyUI, read the original names; diffusers' own is for diffusers."""
CASES = [(name, kind) for name in HEADLESS for kind in (*KINDS, *LAYOUTS)]
STEPS = 8


class OneBatch:
    def __init__(self, batch):
        self.batch = batch

    def size(self, position):
        return self.batch.size

    def at(self, position):
        return self.batch


def denoised(denoiser, inputs, cond):
    noisy = denoiser.objective.add_noise(inputs["latents"], inputs["noise"], inputs["sigma"])
    with torch.no_grad():
        predicted = denoiser.predict(noisy, inputs["sigma"], cond)
    return denoiser.objective.to_denoised(noisy, predicted, inputs["sigma"])


def train_toy(name, kind, base, path):
    """Write a trained LoRA file; returns what the adapter does to the denoised latents."""
    family, denoiser = load_toy(name, base)
    inputs = toy_inputs(TOYS[name])
    cond = toy_conditioning(TOYS[name], family, inputs)
    before = denoised(denoiser, inputs, cond)
    paths = resolve_targets(denoiser.module, denoiser.target_presets, "all")
    adapter = inject(denoiser.module, paths, NetworkConfig(kind=kind, rank=4, alpha=2.0), seed=0)
    training = Training(
        adapter=adapter, optimizer=make_optimizer(adapter.parameters().values(), OptimizerConfig(learning_rate=3e-3))
    )
    batch = Batch(latents_BCHW=inputs["latents"], conditioning=cond, weight_B=torch.ones(2), mask_B1HW=None, names=("a", "b"))  # fmt: skip
    steps = fit(denoiser, training, OneBatch(batch), LoopSettings(loss=MSE, seed=0), lambda step: 3e-3)
    losses = [next(steps).loss for _ in range(STEPS)]
    assert all(loss > 0 for loss in losses)
    save_file(to_file(adapter, denoiser.file_key, torch.float32), path)
    return denoised(denoiser, inputs, cond) - before


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """({case: what the adapter does}, {case: what the host's loader makes of the file}, {case: what it said})."""
    folder = tmp_path_factory.mktemp("loras")
    mine = {}
    for name in HEADLESS:
        base = tmp_path_factory.mktemp("base") / f"{name}.safetensors"
        save_file(weights(name), base)
        for kind in KINDS:
            mine[name, kind] = train_toy(name, kind, base, folder / f"{name}.{kind}.safetensors")
        for layout in LAYOUTS:
            source, target = (folder / f"{name}.{kind}.safetensors" for kind in ("lora", layout))
            if TOYS[name].family == "sdxl":  # a file alone cannot tell that the toy has one resnet a level, and not two
                family, denoiser = load_toy(name, base)
                formats = Formats(family=family, denoiser=denoiser)
                save_file(formats.written(load_file(source), layout, torch.float32), target)
            else:
                convert(source, target, layout, TOYS[name].family)
            mine[name, layout] = mine[name, "lora"]
    told = run_inside("loras", folder)["told"]
    hosts = {case: load_file(folder / f"{'.'.join(case)}.effect")["effect"] for case in CASES}
    return mine, hosts, {case: told[f"{'.'.join(case)}.safetensors"] for case in CASES}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_file_does_in_the_host_what_was_trained(found, name, kind):
    mine, hosts, told = (part[name, kind] for part in found)
    assert mine.norm() > 0
    assert ((hosts - mine).norm() / mine.norm()).item() < 1e-3
    assert [line for line in told if "lora key not loaded" in line] == []
