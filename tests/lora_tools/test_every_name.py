"""Every way in which ComfyUI takes a module's name, by its own recorded key map: converted to each layout, the same change of every weight."""

import re
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_loom.trainer.errors import ModelFileError
from lora_loom.trainer.families.common.unet_names import layers_of
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora_tools.base_keys import recognise
from lora_loom.trainer.lora_tools.convert import convert
from lora_loom.trainer.lora_tools.resize import Keep, resize
from scripts.host_toys import TOYS

from .test_convert import record

PREFIXES = (
    "base_model.model.",
    "lora_unet_",
    "lycoris_",
    "lora_transformer_",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "",
)
NO_LAYERS = re.compile(r"(pos_embed|pad_token|last\.modulation\.lin)$")
TAKEN = (
    "sd1",
    "sd2",
    "sdxl",
    "sd3",
    "flux-dev",
    "flux-schnell",
    "flux2-dev",
    "flux2-klein",
    "chroma",
    "lumina2",
    "z-image",
    "krea2",
    "qwen",
)
FOREIGN = {
    "lumina2": r"(?!diffusion_model\.|lora_unet_)|.*attention[._]to_",
    "flux2-dev": r".*transformer_blocks.*(to_[qkv]|proj_mlp|net[._])|.*linear1_qkv",
    "flux2-klein": r".*transformer_blocks.*(to_[qkv]|proj_mlp|net[._])|.*linear1_qkv",
}
"""{toy: names of a relative, which ComfyUI takes too and leads to rows of other sizes}. Such files are the relative's."""


def schemes(toy):
    """{(prefix, "whole" or "rows"): module keys}: those of whole tensors, and those of rows of one. Each place goes by one key."""
    shapes, accepted = record(toy)["keys"], record(toy)["accepted"]
    found = defaultdict(dict)
    for key, (native, *rows) in accepted.items():
        if len(shapes.get(native, ())) < 2 or NO_LAYERS.search(key) or re.match(FOREIGN.get(toy, r"(?!)"), key):
            continue
        prefix = next(one for one in PREFIXES if key.startswith(one))
        found[prefix, "rows" if len(rows) == 2 else "whole"].setdefault((native, *rows), key)
    return {name: sorted(keys.values()) for name, keys in found.items()}


CASES = [(toy, *scheme) for toy in TAKEN for scheme in schemes(toy)]


def random_lora(toy, keys, path, down="lora_down.weight", up="lora_up.weight"):
    source, tensors = torch.Generator().manual_seed(1), {}
    for key in keys:
        native, *rows = record(toy)["accepted"][key]
        shape = record(toy)["keys"][native]
        height = rows[1] - rows[0] if len(rows) == 2 else shape[0]
        tensors[f"{key}.{down}"] = torch.randn(2, *shape[1:], generator=source)
        tensors[f"{key}.{up}"] = torch.randn(height, 2, *[1] * (len(shape) - 2), generator=source)
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


def host_changes(toy, path):
    """{original tensor: what ComfyUI adds to it}, by its own recorded key map."""
    modules, unknown = group_by_module(load_file(path))
    assert not unknown
    total = {}
    for key, parts in modules.items():
        native, *rows = record(toy)["accepted"][key]
        into = total.setdefault(native, torch.zeros(record(toy)["keys"][native], dtype=torch.float64))
        if rows == ["other"]:  # shift and scale change places
            first, second = weight_change(parts, torch.zeros_like(into)).chunk(2)
            into += torch.cat([second, first])
        else:
            place = into[rows[0] : rows[1]] if rows else into
            place += weight_change(parts, torch.zeros_like(place))
    return total


def assert_same(first, second):
    assert first.keys() <= second.keys()
    for key, change in second.items():
        expected = first.get(key, torch.zeros_like(change))
        assert ((change - expected).norm() <= 1e-6 * max(expected.norm(), 1e-9)).item(), key


@pytest.mark.parametrize(("toy", "prefix", "which"), CASES, ids=lambda one: one or "bare")
def test_every_name_that_comfyui_takes_converts_exactly(toy, prefix, which, tmp_path):
    keys = schemes(toy)[prefix, which]
    source = random_lora(toy, keys, tmp_path / "a.safetensors")
    expected, family = host_changes(toy, source), TOYS[toy].family
    assert recognise(source).unmatched == ()
    for format in ("native", "kohya"):
        target = tmp_path / f"{format}.safetensors"
        convert(source, target, format, family)
        assert_same(expected, host_changes(toy, target))
    convert(source, tmp_path / "d.safetensors", "diffusers", family)  # not all of its names are ComfyUI's
    convert(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "native", family)
    assert_same(expected, host_changes(toy, tmp_path / "back.safetensors"))
    resize(source, tmp_path / "small.safetensors", Keep(rank=2))
    assert_same(expected, host_changes(toy, tmp_path / "small.safetensors"))


def test_rows_of_query_key_and_value_alone_ask_for_the_family(tmp_path):
    """linear1 has other parts in Flux and Flux.2, whose names for those rows are the same."""
    source = random_lora("flux-dev", ["diffusion_model.single_blocks.0.linear1_qkv"], tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match=r"fits .*flux or flux2 by its keys: choose the family with --family"):
        convert(source, tmp_path / "b.safetensors", "native")
    with pytest.raises(
        ModelFileError, match=r"linear1_qkv changes rows of a module that this model does not have apart"
    ):
        convert(source, tmp_path / "b.safetensors", "native", "flux2")
    convert(source, tmp_path / "b.safetensors", "native", "flux")
    assert_same(host_changes("flux-dev", source), host_changes("flux-dev", tmp_path / "b.safetensors"))


def test_rows_that_are_changed_twice_are_refused(tmp_path):
    names = ["diffusion_model.single_blocks.0.linear1_qkv", "transformer.single_transformer_blocks.0.attn.to_q"]
    source = random_lora("flux-dev", names, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="linear1_qkv changes rows that another module of the file changes too"):
        convert(source, tmp_path / "b.safetensors", "native", "flux")


def test_few_blocks_of_a_usual_unet_are_not_taken_for_a_smaller_one(tmp_path):
    """As B-LoRA trains SDXL: two blocks, whose numbers a network with fewer resnets has too."""
    tensors = {}
    for index in (0, 1):
        key = f"lora_unet_up_blocks_0_attentions_{index}_transformer_blocks_0_attn1_to_q"
        tensors |= {f"{key}.lora_down.weight": torch.ones(2, 1280), f"{key}.lora_up.weight": torch.ones(1280, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya", "sdxl")
    modules, _ = group_by_module(load_file(tmp_path / "b.safetensors"))
    assert sorted(modules) == [f"lora_unet_output_blocks_{i}_1_transformer_blocks_0_attn1_to_q" for i in (0, 1)]


@pytest.mark.parametrize(
    ("paths", "layers"),
    [
        (["input_blocks.0.0", "input_blocks.1.0.in_layers.2", "output_blocks.2.1.conv", "input_blocks.3.0.op"], 2),
        (["input_blocks.1.1.proj_in", "input_blocks.4.1.proj_in", "output_blocks.8.1.proj_in"], 2),
        (["input_blocks.3.1.proj_in"], 1),
        (["input_blocks.2.0.op"], 1),
        (["output_blocks.1.1.conv"], 1),
        (
            [
                "up_blocks.1.attentions.1.proj_in",
                "up_blocks.2.attentions.1.proj_in",
                "down_blocks.0.attentions.0.proj_in",
            ],
            1,
        ),
        (["up_blocks.1.attentions.1.proj_in", "up_blocks.2.attentions.2.proj_in"], 2),
        (["mid_block.attentions.0.proj_in"], 2),
    ],
)
def test_what_tells_a_unet_with_one_resnet_a_level(paths, layers):
    assert layers_of(paths) == layers
