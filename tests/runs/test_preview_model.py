"""Samples of another model than the one that is trained: what it computes with the LoRA's file loaded, and training as without it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.lora.preview import laid_over
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import SilentHost, make_config, tiny_folder
from tests.runs.test_samples import pixels

SHORT = {
    "training": {"steps": 2, "save_every": 2, "batch_size": 1},
    "optimizer": {"learning_rate": 0.02},
    "output": {"dtype": "float32"},
}
ASKED = {"prompts": ["a cat"], "sample_steps": 2, "seed": 5, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another member of the family, of the same size."""
    folder = tmp_path_factory.mktemp("other") / "sd"
    shutil.copytree(tiny_folder("sd"), folder)
    [file] = (folder / "unet").glob("*.safetensors")
    source = torch.Generator().manual_seed(9)
    changed = {k: t + 0.05 * torch.randn(t.shape, generator=source).to(t) for k, t in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    return folder


def run(root, **sections):
    host = SilentHost()
    outputs = {**SHORT["output"], "directory": str(root)}
    config = make_config("sd", root, **{**SHORT, "output": outputs, **sections})
    return config, host, train(config, host)


def sample(root, step):
    return root / "run/samples" / f"step-{step:06d}-0.png"


@pytest.mark.parametrize("kind", ["lora", pytest.param("lokr", marks=pytest.mark.slow)])
def test_they_are_what_a_sweep_of_the_other_model_draws(tmp_path, other, kind):
    """The LoRA is trained on one base and looked at on another, with its file loaded there."""
    network = {"kind": kind, "rank": 2, "target_modules": "attention"}
    _, host, done = run(tmp_path / "with", validation={**ASKED, "model": str(other)}, network=network)
    _, plain, alone = run(tmp_path / "without", network=network)
    assert [s.loss for s in host.steps] == [s.loss for s in plain.steps], "training is what it is without"
    mine, theirs = load_file(done.lora), load_file(alone.lora)
    assert all(torch.equal(mine[key], tensor) for key, tensor in theirs.items())
    cells = {"prompts": ["a cat"], "steps": 2, "guidance": [{"scale": 3.0}], "seeds": "5"}
    shown = make_config("sd", tmp_path / "other", **SHORT, model={"base": str(other)}, sweep=cells)
    drawn = {cell.checkpoint: cell.image for cell in sweep(shown, SilentHost(), [done.lora]).cells}
    [lora] = [name for name in drawn if name != "base"]
    for step, label in ((0, "base"), (2, lora)):
        difference = abs(pixels(sample(tmp_path / "with", step)) - pixels(drawn[label]))
        assert difference.max() <= 1
    assert abs(pixels(sample(tmp_path / "with", 0)) - pixels(sample(tmp_path / "with", 2))).max() > 1


def test_a_layer_is_as_it_was_when_the_lora_is_taken_off(other):
    config = make_config("sd", other.parent, model={"base": str(other)})
    base = open_base(config.model)
    network = base.load_denoiser(config.model, "float32")
    path = next(name for name, part in network.module.named_modules() if name.endswith("attn1.to_q"))
    layer = network.module.get_submodule(path)
    x = torch.randn(2, layer.in_features)
    before, key = layer(x), network.file_key(path)
    down, up = ("lora_down", "lora_up") if key.startswith("lora_") else ("lora_A", "lora_B")
    file = {f"{key}.{down}.weight": torch.ones(1, layer.in_features), f"{key}.{up}.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    with laid_over(network, file):
        assert torch.allclose(layer(x), before + x.sum(-1, keepdim=True), atol=1e-5)
    assert torch.equal(layer(x), before)
    assert "forward" not in vars(layer)
    with pytest.raises(ModelFileError, match="DoRA"), laid_over(network, {**file, f"{key}.dora_scale": torch.ones(layer.out_features, 1)}):  # fmt: skip
        pass
    assert "forward" not in vars(layer)


def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path, other):
    cases = {
        "is a sd3 model, and a sd model is trained": {"validation": {**ASKED, "model": str(tiny_folder("sd3"))}},
        "does not go with network.kind = 'dora'": {"network": {"kind": "dora"}},
        "does not go with network.kind = 'glora'": {"network": {"kind": "glora"}},
        "does not go with text.learning_rate": {"text": {"learning_rate": 1e-3}},
        "does not go with a streamed base": {"memory": {"base": "stream"}},
        "would do nothing": {"validation": {"model": str(other)}},
    }
    for message, sections in cases.items():
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, **{"validation": {**ASKED, "model": str(other)}, **sections})
    assert not (tmp_path / "run/run.json").exists()


def test_a_model_of_another_size_is_refused(tmp_path, other):
    config = json.loads((other / "unet/config.json").read_text())
    small = tmp_path / "small"
    from diffusers import UNet2DConditionModel

    shutil.copytree(other, small)
    config["cross_attention_dim"] = config["cross_attention_dim"] * 2
    UNet2DConditionModel.from_config(config).save_pretrained(small / "unet")
    with pytest.raises(ConfigError, match="lacks .* in the shape .*: samples need a model of the same family and size"):
        run(tmp_path / "run", validation={**ASKED, "model": str(small)})
