"""A LoRA on the text encoders: trained at its own rate, resumed exactly, saved under names that ComfyUI takes, swept."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lora_loom.trainer.base_model import open_base
from lora_loom.trainer.config.run import ModelConfig, OptimizerConfig, TextConfig
from lora_loom.trainer.data.cache.keys import find_work
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.families.common.lora_names import is_text_encoder
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.inspect import inspect
from lora_loom.trainer.runs.assemble import set_up
from lora_loom.trainer.runs.headless import build_cache, make_session, prepare, run_plan, train
from lora_loom.trainer.sweep.run import sweep
from lora_loom.trainer.training.text_encoders import rate_scales, text_key, unread_layers
from tests.conftest import HOST_FIXTURES, SilentHost, make_config, tiny_folder

HOST = HOST_FIXTURES
HOSTS_KEY = re.compile(
    r"lora_te[12]?_text_model_encoder_layers_\d+_(self_attn_[qkv]_proj|self_attn_out_proj|mlp_fc[12])$"
)
"""As `model_lora_keys_clip` of ComfyUI spells them."""


def config(family, root, rate=1e-3, **sections):
    network = {"rank": 2, "target_modules": "attention"}
    common = {
        "text": {"learning_rate": rate},
        "network": network,
        "output": {"directory": str(root), "dtype": "float32"},
    }
    return make_config(family, root, **{**common, **sections})


def family_of(made):
    """The name of the toy's folder; those above it are drawn by the system, and may hold any letters."""
    return Path(made.model.base).name


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def finished(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("te")
    made = config(request.param, root, sweep={"prompts": ["a cat"], "steps": 2}, training={"steps": 4, "save_every": 2},
                  optimizer={"learning_rate": 0.02}, rate=0.1)  # fmt: skip
    return made, train(made, host := SilentHost()), host


def test_the_file_holds_both_under_the_hosts_names(finished):
    made, outcome, _ = finished
    assert outcome.max_relative_error < 1e-4
    tensors = load_file(outcome.lora)
    texts = {key.split(".")[0] for key in tensors if is_text_encoder(key)}
    assert texts
    assert all(HOSTS_KEY.match(key) for key in texts)
    names = {key.split("_text_model")[0] for key in texts}
    assert names == ({"lora_te1", "lora_te2"} if family_of(made) == "sdxl" else {"lora_te"})
    assert any(key.startswith("lora_unet_") for key in tensors)
    assert inspect(outcome.lora).zero == (), "every adapter has learnt: none sits where no gradient comes"


@pytest.mark.parametrize(("model", "name"), [("sd1", "te"), ("sd2", "te"), ("sdxl", "te1"), ("sdxl", "te2")])
def test_comfyui_takes_every_name_for_the_same_module(model, name):
    """By its recorded key map, for paths as older and newer versions of transformers have them."""
    accepted = json.loads((HOST / "unets" / "text_keys.json").read_text())[model]
    clip = {"sd1": "clip_l", "sd2": "clip_h", "te1": "clip_l", "te2": "clip_g"}[name if model == "sdxl" else model]
    inner = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    for path in (f"encoder.layers.{layer}.{module}" for layer in (0, 1) for module in inner):
        expected = f"{clip}.transformer.text_model.{path}.weight"
        assert accepted[text_key(f"{name}.{path}")] == accepted[text_key(f"{name}.text_model.{path}")] == expected


def test_a_stopped_run_goes_on_as_if_it_had_not(finished, tmp_path):
    made, outcome, _ = finished
    family = family_of(made)
    again = config(
        family, tmp_path, training={"steps": 4, "save_every": 2}, optimizer={"learning_rate": 0.02}, rate=0.1
    )
    train(again, SilentHost(stop_at=2))
    resumed = train(again, SilentHost())
    first, second = load_file(outcome.lora), load_file(resumed.lora)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_sweep_reads_the_prompts_through_the_trained_encoders(finished, tmp_path):
    """The same file without its text encoders' part gives other pictures."""
    made, outcome, _ = finished
    tensors = load_file(outcome.lora)
    network_only = {key: t for key, t in tensors.items() if not is_text_encoder(key)}
    text_only = {key: t for key, t in tensors.items() if is_text_encoder(key)}
    save_file(network_only, tmp_path / "network.safetensors")
    save_file(text_only, tmp_path / "text.safetensors")
    files = [outcome.lora, tmp_path / "network.safetensors", tmp_path / "text.safetensors"]
    cells = sweep(made, SilentHost(), files).cells
    pictures = {}
    for cell in cells:
        with Image.open(cell.image) as image:
            pictures[cell.checkpoint] = np.asarray(image, dtype=int)
    assert len(pictures) == 4
    values = list(pictures.values())
    assert all(np.abs(a - b).max() > 0 for i, a in enumerate(values) for b in values[:i])
    assert sweep(made, SilentHost(), files).rendered == 0


def test_rates_of_their_own(tmp_path):
    """Two groups: the text encoders move by their share of the rate, whatever the schedule says."""
    made = config("sd", tmp_path, rate=2e-4, optimizer={"learning_rate": 1e-3})
    prepared = prepare(made, SilentHost())
    build_cache(prepared, SilentHost())
    _, training = set_up(make_session(prepared, run_plan(prepared)), SilentHost())
    from lora_loom.trainer.training.optim import set_learning_rate

    assert set_learning_rate(training.optimizer, 5e-4) == 5e-4
    assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([5e-4, 1e-4])
    groups = [len(group["params"]) for group in training.optimizer.param_groups]
    texts = [name for name in training.adapter.parameters() if name.startswith("te.")]
    assert groups[1] == len(texts) > 0
    assert groups[0] + groups[1] == len(training.adapter.parameters())


def test_no_text_is_cached(finished, tmp_path):
    made, _, _ = finished
    fresh = make_config(family_of(made), tmp_path, text={"learning_rate": 0.1},
                        output={"directory": str(tmp_path), "cache": str(tmp_path / "cache")})  # fmt: skip
    prepared = prepare(fresh, SilentHost())
    build_cache(prepared, SilentHost())
    work = find_work(prepared.cache, prepared.dataset, prepared.identity)
    assert not work.views
    assert {prompt.text for prompt in work.prompts.values()} == set(prepared.dataset.captions)


def test_layers_that_nobody_reads_are_left_out():
    def unread(family, name, depth, **text):
        base = open_base(ModelConfig(base=str(tiny_folder(family)), device="cpu"), TextConfig(**text))
        return unread_layers(base, name, depth)

    assert unread("sd", "te", 12) == 0
    assert unread("sd", "te", 12, clip_skip=2) == 1
    assert unread("sdxl", "te1", 12) == 1
    assert unread("sdxl", "te2", 32) == 0, "its pooled vector comes from the last"
    assert unread("sdxl", "te1", 12, clip_skip=3) == 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ({"learning_rate": 0.1, "alone": True}, {"te1", "te2"}),
        ({"learning_rate": 0.1, "learning_rate_2": 0.0}, {"network", "te1"}),
        ({"learning_rate": 0.0, "learning_rate_2": 0.1, "alone": True}, {"te2"}),
    ],
)
def test_which_of_two_encoders_and_the_network_train(tmp_path, text, names):
    network = {"rank": 2, "target_modules": "default" if text.get("alone") else "attention"}
    made = config("sdxl", tmp_path, text=text, network=network, training={"steps": 1, "save_every": 1, "batch_size": 1})
    outcome = train(made, SilentHost())
    held = {"network" if key.startswith("lora_unet") else key.split("_text_model")[0].removeprefix("lora_") for key in load_file(outcome.lora)}  # fmt: skip
    assert held == names
    assert outcome.max_relative_error < 1e-4
    assert inspect(outcome.lora).zero == ()


def test_two_encoders_have_a_rate_each(tmp_path):
    text = TextConfig(learning_rate=2e-4, learning_rate_2=5e-5)
    assert rate_scales(text, OptimizerConfig(learning_rate=1e-3), ("te1", "te2")) == pytest.approx({"te1.": 0.2, "te2.": 0.05})  # fmt: skip
    assert TextConfig(learning_rate=1e-4).rates(["te1", "te2"]) == {"te1": 1e-4, "te2": 1e-4}
    with pytest.raises(ConfigError, match=r"text\.learning_rate_2 = 0\.001: sd has one text encoder; leave it out"):
        prepare(config("sd", tmp_path, text={"learning_rate": 1e-3, "learning_rate_2": 1e-3}), SilentHost())
    with pytest.raises(ConfigError, match=r"text\.alone = True: set text\.learning_rate"):
        TextConfig(alone=True)


@pytest.mark.parametrize(
    ("family", "sections", "message"),
    [
        ("flux", {}, "the text encoders of flux are not trained"),
        ("sd", {"optimizer": {"name": "prodigy", "learning_rate": 1.0}}, "prodigy finds one rate for all"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, family, sections, message):
    made = make_config(family, tmp_path, text={"learning_rate": 1e-4}, **sections)
    with pytest.raises(ConfigError, match=rf"text\.learning_rate = 0\.0001: .*{message}"):
        prepare(made, SilentHost())


@pytest.mark.parametrize(("name", "value"), [("target_modules", "attention"), ("exclude_modules", "to_q")])
def test_a_choice_of_the_networks_modules_is_refused_where_the_text_encoders_train_alone(tmp_path, name, value):
    """It would have no effect. A text encoder has no presets: all of its layers train."""
    network = {"rank": 2, "target_modules": "default", name: value}
    made = make_config("sd", tmp_path, text={"learning_rate": 1e-4, "alone": True}, network=network)
    with pytest.raises(ConfigError, match=rf"network\.{name} = '{value}' would have no effect: text\.alone"):
        prepare(made, SilentHost())


def test_a_text_encoders_lora_over_a_base_that_has_no_such_encoders(tmp_path):
    save_file({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 32),
               "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(64, 1)}, tmp_path / "te.safetensors")  # fmt: skip
    made = make_config("flux", tmp_path, sweep={"prompts": ["a"], "steps": 1})
    with pytest.raises(ModelFileError, match="are not in this flux model, first lora_te_text_model"):
        sweep(made, SilentHost(), [tmp_path / "te.safetensors"])


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_diffusers_loads_what_is_written_for_it(family, tmp_path):
    """Every module of its text encoders gets the change that the native file holds; reading it back gives the native names."""
    made = config(family, tmp_path, rate=0.1, output={"directory": str(tmp_path), "dtype": "float32", "format": "diffusers"},
                  training={"steps": 2, "save_every": 2}, sweep={"prompts": ["a cat"], "steps": 1})  # fmt: skip
    outcome = train(made, SilentHost())
    assert outcome.max_relative_error < 1e-4
    pipeline = pipeline_of(family)
    pipeline.load_lora_weights(str(outcome.lora.parent), weight_name=outcome.lora.name)
    convert(outcome.lora, tmp_path / "native.safetensors", "native", family)
    native, seen = load_file(tmp_path / "native.safetensors"), 0
    names = {"sd": {"te": "text_encoder"}, "sdxl": {"te1": "text_encoder", "te2": "text_encoder_2"}}[family]
    for name, part in names.items():
        for path, layer in getattr(pipeline, part).named_modules():
            if not hasattr(layer, "get_delta_weight"):
                continue
            key = text_key(f"{name}.{path}")
            scale = native[f"{key}.alpha"] / len(native[f"{key}.lora_down.weight"])
            change = native[f"{key}.lora_up.weight"] @ native[f"{key}.lora_down.weight"] * scale
            assert torch.allclose(layer.get_delta_weight(layer.active_adapters[0]), change, atol=1e-6), key
            seen += 1
    assert seen == len({key.split(".")[0] for key in native if is_text_encoder(key)}) > 4
    base, tuned = sweep(made, SilentHost(), [outcome.lora]).cells
    assert base.image.read_bytes() != tuned.image.read_bytes()


def pipeline_of(family):
    """diffusers' own, of the tiny base's parts."""
    import diffusers
    import transformers

    folder = tiny_folder(family)
    parts = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        "tokenizer": None,
        "scheduler": diffusers.DDIMScheduler(),
    }
    if family == "sd":
        return diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    second = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=None)
