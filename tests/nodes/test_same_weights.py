"""A preset means the same weights of the base on both sides: by diffusers names without ComfyUI, by original names in the graph.

The networks are those of the toys that ComfyUI's own classes recorded: {key: shape} of each.
"""

import pytest
import torch
from torch import nn

from lora_loom.trainer import families
from lora_loom.trainer.diffusion.timesteps import ResolutionShift
from lora_loom.trainer.lora.targets import resolve_targets
from lora_loom.trainer.weights.frozen import FrozenConv2d, FrozenLinear
from lora_loom.trainer.weights.row_parts import split
from scripts.host_toys import TOYS
from tests.families.test_native_files import READERS, record

NETWORKS = (
    "sd1",
    "sd2",
    "sdxl",
    "sd3",
    "flux-dev",
    "flux-schnell",
    "flux2-klein",
    "flux2-dev",
    "lumina2",
    "z-image",
    "chroma",
    "krea2",
    "qwen",
    "qwen-edit-plus",
)
RANK = 16


def shapes_of(name):
    return {key: tuple(shape) for key, shape in record(name)["keys"].items()}


def network_of(shapes):
    """A network with these weights, on the meta device: a layer for each matrix and kernel, plain parameters for the rest."""
    root = nn.Module()
    with torch.device("meta"):
        for key, shape in shapes.items():
            *path, leaf = key.split(".")
            owner = root
            for depth, name in enumerate(path):
                if not hasattr(owner, name):
                    is_layer = depth == len(path) - 1 and leaf == "weight" and len(shape) in (2, 4)
                    owner.add_module(name, _layer(shape) if is_layer else nn.Module())
                owner = getattr(owner, name)
            if owner._parameters.get(leaf) is None:
                owner.register_parameter(leaf, nn.Parameter(torch.empty(shape)))
    return root.requires_grad_(False)


def _layer(shape):
    if len(shape) == 2:
        return FrozenLinear(shape[1], shape[0], bias=False)
    return FrozenConv2d(shape[1], shape[0], shape[2], bias=False)


def network(name):
    """Keys in an order in which a layer stands before its bias."""
    shapes = shapes_of(name)
    return network_of(dict(sorted(shapes.items(), key=lambda item: not item[0].endswith(".weight"))))


@pytest.fixture
def loaded(host):
    """(the network with its parts, its row) as the loaded backend has them."""

    def build(name):
        family = families.get(TOYS[name].family)
        module = network(name)
        row = host("backend.families").described(family.comfy.model_classes[0], module)
        for path, parts in row.parts.items():
            split(module.get_submodule(path), parts)
        return module, row

    return build


def headless(name):
    """(the diffusers network, its presets, the key map)."""
    family = families.get(TOYS[name].family)
    config, keymap = READERS[family.name](shapes_of(name))
    tiny = family.tiny().denoiser
    with torch.device("meta"):
        module = type(tiny.module).from_config(config)
    return module, family.target_presets([path for path, _ in module.named_modules()]), keymap


def rows_by_diffusers(paths, module, keymap):
    """{(original weight, row)} that adapters on these diffusers modules change."""
    found = set()
    for path in paths:
        place = keymap[f"{path}.weight"]
        start, stop = place.rows or (0, module.get_submodule(path).weight.shape[0])
        found |= {(place.native, row) for row in range(start, stop)}
    return found


def rows_by_original(paths, module, row):
    found = set()
    for path in paths:
        whole, _, part = path.rpartition(".")
        if whole in row.parts:
            start, stop = row.parts[whole][part]
        else:
            whole, start, stop = path, 0, module.get_submodule(path).weight.shape[0]
        found |= {(f"{whole}.weight", number) for number in range(start, stop)}
    return found


def parameters(module, paths):
    """Of a LoRA: A takes the whole input, of a convolution its kernel too; B gives the output."""
    weights = [module.get_submodule(path).weight for path in paths]
    return sum(RANK * (weight[0].numel() + weight.shape[0]) for weight in weights)


DEEP = {"tiny", "nano"}
"""Presets of single blocks of Flux that toys are not deep enough for."""


@pytest.mark.parametrize("name", NETWORKS)
def test_presets_train_the_same_weights_in_both_backends(name, loaded):
    module, presets, keymap = headless(name)
    theirs, row = loaded(name)
    assert presets.keys() >= {"default", "attention", "attention+mlp", "all"}
    for preset in presets.keys() - DEEP:
        paths = resolve_targets(module, presets, preset)
        their_paths = resolve_targets(theirs, row.targets, preset)
        assert row.targets.keys() == presets.keys()
        mine = rows_by_diffusers(paths, module, keymap)
        assert mine == rows_by_original(their_paths, theirs, row), preset
        assert parameters(module, paths) == parameters(theirs, their_paths), preset
        if TOYS[name].family in ("sd3", "flux"):
            mine = {f"transformer.{path}" for path in paths}
            fused = {row.file_keys[path] for path in their_paths if path in row.file_keys}
            assert fused <= mine, "a part has the name in LoRA files that it has without ComfyUI"


def test_the_attention_of_fluxs_single_blocks_is_three_parts_of_linear1(loaded):
    module, row = loaded("flux-dev")
    single = [path for path in resolve_targets(module, row.targets, "attention") if path.startswith("single")]
    parts = [f"single_blocks.{i}.linear1.to_{x}" for i in (0, 1) for x in "kqv"]
    assert single == parts
    assert row.file_keys[parts[0]] == "transformer.single_transformer_blocks.0.attn.to_k"
    with_mlp = [path for path in resolve_targets(module, row.targets, "attention+mlp") if path.startswith("single")]
    assert with_mlp == sorted([*parts, *(f"single_blocks.{i}.{name}" for i in (0, 1) for name in ("linear1.proj_mlp", "linear2"))])  # fmt: skip


@pytest.mark.parametrize("name", ["flux-dev", "sd3"])
def test_the_modules_of_a_lora_of_an_earlier_version(name, loaded, host):
    """It trained a fused Linear as one module, under the original file's name."""
    module, row = loaded(name)
    joined = host("backend.families").joined
    paths = resolve_targets(module, row.targets, "attention+mlp")
    every = resolve_targets(module, row.targets, "all")
    whole = joined(paths, row.parts, missing=lambda part: part not in every)
    assert not set(whole) & row.file_keys.keys()
    idle = (
        ["joint_blocks.1.context_block.attn.qkv.add_q_proj"] if name == "sd3" else []
    )  # nothing reads it: no preset has it
    assert rows_by_original(whole, module, row) == rows_by_original([*paths, *idle], module, row)
    attention = resolve_targets(module, row.targets, "attention")
    assert ("single_blocks.0.linear1.to_q" in joined(attention, row.parts)) == (name == "flux-dev"), (
        "not all of linear1"
    )


def test_a_pattern_that_leaves_out_the_whole_leaves_out_its_parts(loaded):
    module, row = loaded("flux-dev")
    found = resolve_targets(module, row.targets, "attention", r"img_attn\.qkv$|linear1$")
    assert found == resolve_targets(module, row.targets, "attention", r"img_attn\.qkv|linear1")
    assert not [path for path in found if "img_attn.qkv" in path or "linear1" in path]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        (r"single_blocks\.0\.linear1", ["single_blocks.0.linear1"]),
        (
            r"single_blocks\.0\.",
            ["single_blocks.0.linear1", "single_blocks.0.linear2", "single_blocks.0.modulation.lin"],
        ),
        (r"single_blocks\.0\.linear1\.to_q$", ["single_blocks.0.linear1.to_q"]),
    ],
)
def test_a_pattern_finds_a_part_only_where_it_does_not_find_the_whole(loaded, pattern, paths):
    module, row = loaded("flux-dev")
    assert resolve_targets(module, row.targets, f"regex:{pattern}") == paths


def test_shift_guidance_and_blocks_are_the_rows(loaded):
    rows = {name: loaded(name)[1] for name in NETWORKS}
    assert rows["flux-dev"].training_shift == ResolutionShift()
    assert rows["flux-schnell"].training_shift == 1.0, "as without ComfyUI"
    assert rows["sd3"].training_shift == 3.0
    assert rows["qwen"].training_shift == ResolutionShift(max_tokens=8192, max_shift=0.9)
    assert rows["sdxl"].training_shift is None, "it is no flow model"
    assert {name for name, row in rows.items() if row.conditions} == {
        "flux-dev", "flux-schnell", "flux2-dev", "flux2-klein",
    }  # fmt: skip
    assert all(row.blocks for row in rows.values())


def test_a_network_that_a_row_does_not_fit_is_told_by_structure(host):
    """A class of ComfyUI may hold relatives of a family: Z-Image is loaded as Lumina2, with a tensor of its own."""
    described = host("backend.families").described
    lumina = shapes_of("lumina2")
    assert described("Lumina2", network_of(lumina)) is not None
    assert described("Lumina2", network_of({**lumina, "cap_pad_token": (1, 96)})) is None
    assert described("Lumina2", network_of({**lumina, "layers.0.extra.weight": (96, 96)})) is None
    flux = shapes_of("flux-dev")
    assert described("Flux", network_of({key: s for key, s in flux.items() if not key.startswith("vector_in")})) is None
    assert described("NobodysModel", network_of(flux)) is None
