"""A run's LoRA in other programs' layouts and back; SDXL's two names for every module, as ComfyUI maps them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_loom.trainer import families
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.families.common.unet_names import to_diffusers_path, to_original_path
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.base_keys import recognise
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.inspect import inspect
from lora_loom.trainer.lora_tools.layouts import Formats
from lora_loom.trainer.runs.headless import prepare, train
from lora_loom.trainer.sweep.run import sweep
from tests.conftest import FAMILIES, HOST_FIXTURES, SilentHost, eject, make_config

HOST = HOST_FIXTURES
REAL = json.loads((HOST / "unets" / "names.json").read_text())
ENDS = ("norm", "ff.net.1", "class_embedding", "conv_norm", "attn1.to_out.1")
"""Names in ComfyUI's table that no LoRA has: norms, dropouts."""


def modules_of(names):
    skipped = (*ENDS, "norm1", "norm2", "norm3")
    return {d: n for d, n in names.items() if not any(part in d for part in skipped)}


def diffusers_levels(names):
    return [name.split(".")[1] for name in names if name.startswith("up_blocks")]


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_every_module_of_the_real_unets_has_comfyuis_names(model):
    names = modules_of(REAL[model])
    bare = (0,) if model == "sd1" else ()
    checked = 0
    for diffusers, native in names.items():
        if model == "sd1" and "add_embedding" in diffusers:
            continue
        if "upsamplers" in diffusers:  # ComfyUI's table has one place for all, and one for a level that has none
            level = int(diffusers.split(".")[1])
            if level < len(set(diffusers_levels(names))) - 1:
                place = 1 if level in bare else 2
                assert to_original_path(diffusers, 2, bare) == f"output_blocks.{3 * level + 2}.{place}.conv"
                assert to_diffusers_path(f"output_blocks.{3 * level + 2}.{place}.conv", 2) == diffusers
            continue
        assert to_original_path(diffusers, 2, bare) == native
        assert to_diffusers_path(native, 2) == diffusers
        checked += 1
    assert checked > 200


@pytest.mark.parametrize("toy", ["sd1", "sd2", "sdxl"])
def test_both_names_of_a_toys_modules_are_one_tensor_in_comfyui(toy):
    """By the recorded key map: with one resnet a level, the original name and ours lead to the same weight."""
    record = json.loads((HOST / f"{toy}.json").read_text())
    accepted, keys = record["accepted"], record["keys"]
    checked = 0
    for key in (k.removesuffix(".weight") for k in keys if k.endswith(".weight") and len(keys[k]) > 1):
        diffusers = to_diffusers_path(key, 1)
        original = accepted["lora_unet_" + key.replace(".", "_")]
        assert accepted["lora_unet_" + diffusers.replace(".", "_")] == original == [f"{key}.weight"]
        bare = () if toy == "sdxl" else (0,)
        assert to_original_path(diffusers, 1, bare) == key
        checked += 1
    assert checked > 60


def kohya_sdxl(path, source):
    """A LoRA with the names that sd-scripts gives SDXL's modules, attention and convolutions among them."""
    tensors = {}
    for native in modules_of(REAL["sdxl"]).values():
        if "attn" in native or "ff.net" in native or "proj_" in native:
            name = "lora_unet_" + native.replace(".", "_")
            width = 2048 if native.endswith(("attn2.to_k", "attn2.to_v")) else 6
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, width, generator=source)
            tensors[f"{name}.lora_up.weight"] = torch.randn(6, 2, generator=source)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    for native in ("input_blocks.4.0.in_layers.2", "output_blocks.2.2.conv", "input_blocks.3.0.op"):
        name = "lora_unet_" + native.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 6, 3, 3, generator=source)
        tensors[f"{name}.lora_up.weight"] = torch.randn(6, 2, 1, 1, generator=source)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return tensors


def test_sd_scripts_sdxl_files_convert_and_come_back(tmp_path):
    before = kohya_sdxl(tmp_path / "k.safetensors", torch.Generator().manual_seed(0))
    done = convert(tmp_path / "k.safetensors", tmp_path / "n.safetensors", "native")
    assert (done.family, done.modules_before) == ("sdxl", done.modules_after)
    native = load_file(tmp_path / "n.safetensors")
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in native
    assert "lora_unet_up_blocks_0_upsamplers_0_conv.lora_up.weight" in native
    convert(tmp_path / "n.safetensors", tmp_path / "d.safetensors", "diffusers")
    assert "unet.mid_block.attentions.0.proj_in.lora_A.weight" in load_file(tmp_path / "d.safetensors")
    convert(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "kohya")
    after = load_file(tmp_path / "back.safetensors")
    assert {key for key in after if not key.endswith("alpha")} == {key for key in before if not key.endswith("alpha")}
    for key in (key.removesuffix(".alpha") for key in before if key.endswith(".alpha")):
        changes = [
            t[f"{key}.lora_up.weight"].flatten(1) @ t[f"{key}.lora_down.weight"].flatten(1) * t[f"{key}.alpha"] / 2
            for t in (before, after)
        ]
        assert torch.allclose(*changes, atol=1e-5)


def test_text_encoders_keep_their_names(tmp_path):
    """Between the layouts that have the same for them; the network's modules change theirs beside them."""
    tensors = kohya_sdxl(tmp_path / "k.safetensors", torch.Generator().manual_seed(0))
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    text = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(6, 2), f"{name}.alpha": torch.tensor(1.0)}  # fmt: skip
    save_file({**tensors, **text}, tmp_path / "both.safetensors")
    done = convert(tmp_path / "both.safetensors", tmp_path / "n.safetensors", "native")
    native = load_file(tmp_path / "n.safetensors")
    assert done.family == "sdxl"
    assert all(torch.equal(native[key], tensor) for key, tensor in text.items())
    assert len(native) == len(tensors) + 3
    assert not [key for key in native if "input_blocks" in key]
    convert(tmp_path / "both.safetensors", tmp_path / "d.safetensors", "diffusers")
    there = load_file(tmp_path / "d.safetensors")
    stem = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    up, down = (there[f"{stem}.lora_{letter}.weight"] for letter in "BA")
    assert torch.equal(up @ down, torch.ones(6, 8)), "alpha / rank = 1 / 2 is multiplied in"
    convert(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "kohya")
    assert {key for key in load_file(tmp_path / "back.safetensors") if "lora_te" in key} == set(text)
    recognised = recognise(tmp_path / "both.safetensors")
    assert (recognised.families, recognised.text_encoder, recognised.unmatched) == (("sdxl",), 1, ())


def adapted(family, rank=2):
    tiny = families.get(family).tiny()
    paths = resolve_targets(tiny.denoiser.module, tiny.denoiser.target_presets, "attention+mlp")
    adapter = inject(tiny.denoiser.module, paths, NetworkConfig(rank=rank, alpha=3.0), seed=0)
    source = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=source)
    return tiny.denoiser, adapter


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_in_another_layout_says_what_was_trained(family, format):
    denoiser, adapter = adapted(family)
    formats = Formats(family=families.get(family), denoiser=families.get(family).tiny().denoiser)
    tensors = to_file(adapter, denoiser.file_key, torch.float32)
    assert formats.native(tensors).keys() == tensors.keys()
    written = formats.written(tensors, format, torch.float32)
    prefix = {"diffusers": ("transformer.", "unet."), "kohya": ("lora_unet_",)}[format]
    assert all(key.startswith(prefix) for key in written)
    if format == "kohya" and family == "sdxl":
        assert not [key for key in written if "down_blocks" in key or "up_blocks" in key]
    error, where = max_relative_error(adapter, denoiser.file_key, formats.native(written))
    assert error < 1e-5, where


def test_fused_names_have_the_hosts_rows():
    """Flux in kohya's layout: every key is one that ComfyUI knows, by the recorded map's forms."""
    known = json.loads((HOST / "flux-dev.json").read_text())["accepted"]
    denoiser, adapter = adapted("flux")
    formats = Formats(family=families.get("flux"), denoiser=denoiser)
    eject(adapter)
    written = formats.written(to_file(adapter, denoiser.file_key, torch.float32), "kohya", torch.float32)
    assert {key.split(".")[0] for key in written} <= known.keys()


@pytest.mark.parametrize(("family", "format"), [("flux", "kohya"), ("sdxl", "kohya"), ("lumina2", "diffusers")])
def test_a_run_writes_the_layout_and_everything_reads_it(family, format, tmp_path):
    settings = {"prompts": ["a"], "steps": 1, "base": False}
    common = {"optimizer": {"learning_rate": 0.05}, "sweep": settings, "training": {"steps": 2, "save_every": 1}}
    plain = make_config(family, tmp_path / "a", output={"directory": str(tmp_path / "a")}, **common)
    other = make_config(family, tmp_path / "b", output={"directory": str(tmp_path / "b"), "format": format}, **common)
    first, second = train(plain, SilentHost()), train(other, SilentHost())
    assert second.max_relative_error < 5e-3
    names = load_file(second.lora).keys()
    assert names != load_file(first.lora).keys()
    with safe_open(second.lora, "pt") as file:
        metadata = file.metadata()
    assert metadata["loom.format"] == format
    assert inspect(second.lora).unknown == ()
    pictures = []
    for config, outcome in ((plain, first), (other, second)):
        with Image.open(sweep(config, SilentHost(), [outcome.lora]).cells[0].image) as image:
            pictures.append(np.asarray(image, dtype=float))
    assert np.abs(pictures[0] - pictures[1]).mean() < 2, "the same LoRA, rounded another way"
    if family == "sdxl":  # the ranks stay, so a run can start from it
        start = make_config(family, tmp_path / "c", network={"init_from": str(second.lora)}, training={"steps": 1})
        assert train(start, SilentHost()).step == 1


def test_the_layout_may_change_when_a_run_goes_on(tmp_path):
    """Checkpoints are the engine's own: only the files for users change."""
    first = make_config("flux", tmp_path, training={"steps": 2, "save_every": 1})
    train(first, SilentHost(stop_at=1))
    second = make_config(
        "flux", tmp_path, training={"steps": 2, "save_every": 1}, output={**vars_of(first), "format": "kohya"}
    )
    outcome = train(second, SilentHost())
    assert outcome.step == 2
    assert all(key.startswith("lora_unet_") for key in load_file(outcome.lora))


def vars_of(config):
    return {"directory": config.output.directory, "cache": config.output.cache}


def test_what_has_no_form_in_another_layout(tmp_path):
    config = make_config(
        "flux", tmp_path, network={"kind": "loha"}, output={"directory": str(tmp_path), "format": "kohya"}
    )
    with pytest.raises(ConfigError, match=r"output\.format = 'kohya': only network\.kind = 'lora'"):
        prepare(config, SilentHost())
    denoiser, adapter = adapted("flux")
    eject(adapter)
    formats = Formats(family=families.get("flux"), denoiser=denoiser)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    dora = {f"{key}.lora_down.weight": torch.ones(1, 32), f"{key}.lora_up.weight": torch.ones(96, 1), f"{key}.dora_scale": torch.ones(96, 1)}  # fmt: skip
    with pytest.raises(
        ModelFileError, match="lora_unet_double_blocks_0_img_attn_qkv is of the kind DoRA, whose change depends"
    ):
        formats.native(dora)
