"""Layouts of LoRA files: the same change of every weight under other names, and each taken by the program it is for."""

import json
from functools import cache

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lora_loom.trainer import families
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ConfigError, ModelFileError
from lora_loom.trainer.families.common.family import Loading
from lora_loom.trainer.families.common.source import open_source
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora.patch import patched
from lora_loom.trainer.lora.state_dict import to_file
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.types import Geometry
from scripts.host_toys import TOYS, toy_tensor
from tests.conftest import HOST_FIXTURES, eject, tiny_folder

HOST = HOST_FIXTURES
CPU = Loading(dtype=None, device=torch.device("cpu"))
TRANSFORMERS = ("chroma", "krea2", "flux-dev", "flux-schnell", "flux2-klein", "sd3", "lumina2", "z-image", "qwen")
FUSING = ("chroma", "flux-dev", "flux-schnell", "flux2-klein", "sd3", "z-image")


@cache
def record(toy):
    return json.loads((HOST / f"{toy}.json").read_text())


def toy_denoiser(toy, folder):
    path = folder / "base.safetensors"
    save_file({key: toy_tensor(key, tuple(shape)) for key, shape in record(toy)["keys"].items()}, path)
    source = open_source(str(path))
    family = families.get(TOYS[toy].family)
    return family.load_denoiser(source, TOYS[toy].variant, CPU)


def save_lora(denoiser, path, preset="attention+mlp", alpha=1.0, dtype=torch.float32):
    """A LoRA as training writes it, with random numbers."""
    targets = resolve_targets(denoiser.module, denoiser.target_presets, preset)
    adapter = inject(denoiser.module, targets, NetworkConfig(rank=2, alpha=alpha), seed=0)
    source = torch.Generator().manual_seed(3)
    for parameter in adapter.parameters().values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=source)
    save_file(to_file(adapter, denoiser.file_key, dtype), path)
    eject(adapter)
    return path


def host_changes(toy, path):
    """{original tensor: what ComfyUI adds to it}, by its own recorded key map; every key must be in it."""
    modules, unknown = group_by_module(load_file(path))
    assert not unknown
    shapes = {key: tuple(shape) for key, shape in record(toy)["keys"].items()}
    total = {}
    for key, parts in modules.items():
        native, *rows = record(toy)["accepted"][key]
        into = total.setdefault(native, torch.zeros(shapes[native], dtype=torch.float64))
        place = into[rows[0] : rows[1]] if rows else into
        place += weight_change(parts, torch.zeros_like(place))
    return total


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert ((first[key] - second[key]).norm() / first[key].norm()).item() < 1e-6, key


@pytest.mark.parametrize("toy", TRANSFORMERS)
def test_kohyas_layout_changes_every_weight_alike_in_comfyui(toy, tmp_path):
    native = save_lora(toy_denoiser(toy, tmp_path), tmp_path / "native.safetensors")
    family = TOYS[toy].family
    done = convert(native, tmp_path / "kohya.safetensors", "kohya", family)
    assert all(key.startswith("lora_unet_") for key in load_file(tmp_path / "kohya.safetensors"))
    assert_same(host_changes(toy, native), host_changes(toy, tmp_path / "kohya.safetensors"))
    back = convert(tmp_path / "kohya.safetensors", tmp_path / "back.safetensors", "native", family)
    tensors = load_file(tmp_path / "back.safetensors")
    assert tensors.keys() >= load_file(native).keys()
    added = {key for key in tensors.keys() - load_file(native).keys() if key.endswith("lora_B.weight")}
    assert not any(tensors[key].any() for key in added), "rows of a fused module that were not trained"
    assert_same(host_changes(toy, native), host_changes(toy, tmp_path / "back.safetensors"))
    if toy in FUSING:
        assert done.fused > 0
        assert done.rank_after == (8 if toy in ("chroma", "flux-dev", "flux-schnell") else 6), (
            "linear1 holds q, k, v and the feed-forward"
        )
        assert back.split == done.fused
        assert "trained separately, which is exact at rank" in done.text()
    else:
        assert (done.fused, back.split) == (0, 0)


@pytest.mark.parametrize("toy", ["flux-dev", "sd3"])
def test_what_was_fused_before_is_fused_again_at_its_old_rank(toy, tmp_path):
    """A LoRA on the fused projections, split and put together: the very same tensors."""
    source = torch.Generator().manual_seed(0)
    tensors = {}
    for key, shape in record(toy)["keys"].items():
        if key.endswith(("qkv.weight", "linear1.weight")) and key != "joint_blocks.1.context_block.attn.qkv.weight":
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, shape[1], generator=source)
            tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, generator=source)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "a.safetensors")
    split = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "native")
    assert split.split == len(tensors) // 3
    assert_same(host_changes(toy, tmp_path / "a.safetensors"), host_changes(toy, tmp_path / "b.safetensors"))
    fused = convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya", TOYS[toy].family)
    assert fused.rank_after == 2
    again = load_file(tmp_path / "c.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_a_part_alone_leaves_the_other_rows_as_they_are(tmp_path):
    denoiser = toy_denoiser("flux-dev", tmp_path)
    denoiser.target_presets = {"some": next(iter(families.get("flux").target_presets(()).values()))}
    path = tmp_path / "native.safetensors"
    save_lora(denoiser, path, preset=r"regex:^transformer_blocks\.\d\.attn\.to_k$")
    convert(path, tmp_path / "kohya.safetensors", "kohya", "flux")
    changes = host_changes("flux-dev", tmp_path / "kohya.safetensors")
    assert_same(host_changes("flux-dev", path), changes)
    change = changes["double_blocks.0.img_attn.qkv.weight"]
    assert change[:128].abs().sum() == change[256:].abs().sum() == 0
    assert change[128:256].abs().sum() > 0


PIPELINES = {
    "flux": "FluxPipeline",
    "chroma": "ChromaPipeline",
    "flux2": "Flux2KleinPipeline",
    "krea2": "Krea2Pipeline",
    "sd3": "StableDiffusion3Pipeline",
    "lumina2": "Lumina2Pipeline",
    "z_image": "ZImagePipeline",
    "qwen_image": "QwenImagePipeline",
    "qwen_image21": "QwenImage21Pipeline",
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
NETWORKS = {
    "flux": "FluxTransformer2DModel",
    "chroma": "ChromaTransformer2DModel",
    "flux2": "Flux2Transformer2DModel",
    "krea2": "Krea2Transformer2DModel",
    "sd3": "SD3Transformer2DModel",
    "lumina2": "Lumina2Transformer2DModel",
    "z_image": "ZImageTransformer2DModel",
    "qwen_image": "QwenImageTransformer2DModel",
    "qwen_image21": "QwenImage21Transformer2DModel",
    "sd": "UNet2DConditionModel",
    "sdxl": "UNet2DConditionModel",
}


@pytest.mark.parametrize("name", list(PIPELINES))
def test_diffusers_loads_its_layout_and_predicts_as_trained(name, tmp_path):
    """Through the pipeline's own reader and the network's own loader, on the same weights."""
    import diffusers

    family, tiny = families.get(name), families.get(name).tiny()
    native = save_lora(tiny.denoiser, tmp_path / "native.safetensors", alpha=3.0)
    convert(native, tmp_path / "diffusers.safetensors", "diffusers", name)
    place = Geometry(original=(64, 64), resized=(64, 64), crop_left=0, crop_top=0, target=(64, 64))
    cond = family.condition(tiny.encoders.text.encode(["cat"]), [place], 1.0)
    channels = family.latent_space.channels
    noisy = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = tiny.denoiser.objective.sigma_at(torch.tensor([0.5]))
    base = tiny.denoiser.predict(noisy, sigma, cond)
    with patched(tiny.denoiser, load_file(native), 1.0):
        expected = tiny.denoiser.predict(noisy, sigma, cond) - base

    found = getattr(diffusers, PIPELINES[name]).lora_state_dict(load_file(tmp_path / "diffusers.safetensors"))
    tensors = found[0] if isinstance(found, tuple) else found
    part = "unet" if name in ("sd", "sdxl") else "transformer"
    theirs = getattr(diffusers, NETWORKS[name]).from_pretrained(tiny_folder(name) / part).eval()
    theirs.load_lora_adapter(dict(tensors), prefix=part)
    assert len(tensors) == len(load_file(tmp_path / "diffusers.safetensors"))
    if name == "lumina2":  # the network of diffusers' own has q, k, v apart
        with torch.no_grad():
            seen = -theirs(noisy, 1 - sigma, cond["text"], cond["text_mask"], return_dict=False)[0]
    else:
        tiny.denoiser.module = theirs
        with torch.no_grad():
            seen = tiny.denoiser.predict(noisy, sigma, cond)
    assert ((seen - base - expected).norm() / expected.norm()).item() < 1e-3


@pytest.mark.parametrize("toy", [*TRANSFORMERS, "sd1", "sdxl"])
def test_to_diffusers_and_back_is_the_same_change(toy, tmp_path):
    native = save_lora(toy_denoiser(toy, tmp_path), tmp_path / "native.safetensors", preset="attention", alpha=3.0)
    convert(native, tmp_path / "d.safetensors", "diffusers", TOYS[toy].family)
    assert not [key for key in load_file(tmp_path / "d.safetensors") if key.endswith("alpha")]
    convert(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "native", TOYS[toy].family)
    assert load_file(tmp_path / "back.safetensors").keys() == load_file(native).keys()
    assert_same(host_changes(toy, native), host_changes(toy, tmp_path / "back.safetensors"))


def test_a_bfloat16_file_stays_one_and_says_what_was_done(tmp_path):
    native = save_lora(toy_denoiser("sd3", tmp_path), tmp_path / "n.safetensors", dtype=torch.bfloat16)
    convert(native, tmp_path / "k.safetensors", "kohya", "sd3")
    tensors = load_file(tmp_path / "k.safetensors")
    assert {t.dtype for key, t in tensors.items() if not key.endswith("alpha")} == {torch.bfloat16}
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        assert json.loads(file.metadata()["loom.history"]) == [{"tool": "convert", "facts": {"format": "kohya"}}]


def test_what_cannot_be_converted_is_refused(tmp_path):
    denoiser = toy_denoiser("sd3", tmp_path)
    native = save_lora(denoiser, tmp_path / "n.safetensors")
    with pytest.raises(ConfigError, match="format = 'khoya': did you mean 'kohya'"):
        convert(native, tmp_path / "x.safetensors", "khoya")
    with pytest.raises(ConfigError, match=r"model\.family = 'sd4': did you mean"):
        convert(native, tmp_path / "x.safetensors", "kohya", "sd4")
    with pytest.raises(ModelFileError, match="are not flux modules that can be converted, first"):
        convert(native, tmp_path / "x.safetensors", "kohya", "flux")
    save_file({"transformer.nothing.lora_A.weight": torch.ones(1, 2), "transformer.nothing.lora_B.weight": torch.ones(2, 1)}, tmp_path / "s.safetensors")  # fmt: skip
    with pytest.raises(ModelFileError, match="fits no known family by its keys: choose the family with --family"):
        convert(tmp_path / "s.safetensors", tmp_path / "x.safetensors", "kohya")
    dora = {**load_file(native)}
    key = next(key for key in dora if key.endswith("lora_B.weight"))
    dora[key.replace("lora_B.weight", "dora_scale")] = torch.ones(dora[key].shape[0], 1)
    save_file(dora, tmp_path / "dora.safetensors")
    with pytest.raises(ModelFileError, match="is of the kind DoRA, whose change depends"):
        convert(tmp_path / "dora.safetensors", tmp_path / "x.safetensors", "kohya", "sd3")
    text = {"lora_te_a.lora_down.weight": torch.ones(1, 2), "lora_te_a.lora_up.weight": torch.ones(2, 1)}
    save_file({**load_file(native), **text}, tmp_path / "te.safetensors")
    with pytest.raises(
        ModelFileError,
        match="1 modules belong to a text encoder other than CLIP, first lora_te_a: .* cannot be converted",
    ):
        convert(tmp_path / "te.safetensors", tmp_path / "x.safetensors", "diffusers", "sd3")
    clip = {
        key.replace("lora_te_a", "lora_te_text_model_encoder_layers_0_mlp_fc1"): tensor for key, tensor in text.items()
    }
    save_file(clip, tmp_path / "te.safetensors")
    with pytest.raises(ModelFileError, match="holds modules of text encoders only"):
        convert(tmp_path / "te.safetensors", tmp_path / "x.safetensors", "kohya", "sd")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_kinds_become_the_lora_of_the_same_change(kind, tmp_path):
    denoiser = toy_denoiser("sd3", tmp_path)
    adapter = inject(denoiser.module, ["transformer_blocks.0.attn.to_q"], NetworkConfig(kind=kind, rank=2), seed=0)
    for parameter in adapter.parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    save_file(to_file(adapter, denoiser.file_key, torch.float32), tmp_path / "n.safetensors")
    eject(adapter)
    done = convert(tmp_path / "n.safetensors", tmp_path / "k.safetensors", "kohya", "sd3")
    assert done.modules_after == 1
    assert_same(host_changes("sd3", tmp_path / "n.safetensors"), host_changes("sd3", tmp_path / "k.safetensors"))


def test_the_command(tmp_path):
    native = save_lora(toy_denoiser("flux-dev", tmp_path), tmp_path / "native.safetensors")
    target = tmp_path / "k.safetensors"
    done = CliRunner().invoke(app, ["convert", str(native), str(target), "--format", "kohya"])
    assert done.exit_code == 0, done.output
    assert "at rank 8 instead of 2" in done.output
    again = CliRunner().invoke(app, ["convert", str(native), str(target), "--format", "kohya"])
    assert again.exit_code != 0
    assert "exists: use another name, or --overwrite" in again.output


@pytest.mark.parametrize("toy", [*TRANSFORMERS, "flux2-dev"])
def test_the_native_format_has_names_that_comfyui_takes_for_every_module(toy, tmp_path):
    """Modules outside of the blocks too, some of which ComfyUI does not know by diffusers' names."""
    trained = save_lora(toy_denoiser(toy, tmp_path), tmp_path / "trained.safetensors", preset="all", alpha=3.0)
    for format, name in (("native", "again"), ("diffusers", "d")):
        convert(trained, tmp_path / f"{name}.safetensors", format, TOYS[toy].family)
    convert(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "native", TOYS[toy].family)
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(trained).keys()
    for name in ("again", "back"):
        assert_same(host_changes(toy, trained), host_changes(toy, tmp_path / f"{name}.safetensors"))
