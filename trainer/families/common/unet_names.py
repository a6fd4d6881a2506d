"""The two names of every module of a UNet: diffusers' and the original file's, as sd-scripts writes them for SDXL.

Every level has the same number of resnets on the way down (`layers`, 2 in SD and SDXL), one more on the way up, and in
the original file all of them are counted through.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .keymap import KeyMap, Part
from .lora_layouts import Widths
from .unet import UNET_LORA_DIFFUSERS, UNET_LORA_NATIVE, UNET_LORA_PREFIXES

LAYERS = 2
RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_ORIGINAL_RESNET = {new: old for old, new in RESNET.items()} | {"norm1": "in_layers.0", "norm2": "out_layers.0"}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_ORIGINAL_ENDS = {new: old for old, new in ENDS.items()} | {"conv_norm_out": "out.0"}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_ORIGINAL_MIDDLE = {new: old for old, new in _MIDDLE.items()}
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out",
    "conv_shortcut", "time_emb_proj", "conv_in", "conv_out", "time_embedding", "add_embedding", "linear_1", "linear_2",
    "input_blocks", "output_blocks", "middle_block", "in_layers", "out_layers", "emb_layers", "skip_connection",
    "time_embed", "label_emb",
)  # fmt: skip
"""Names within paths that have an underscore of their own."""


def to_diffusers_path(path: str, layers: int = LAYERS) -> str:
    """Returns diffusers' path of a module of the original file that can have a LoRA."""
    if path in ENDS:
        return ENDS[path]
    block, rest = path.split(".", 1)
    if block == "middle_block":
        part, inner = rest.split(".", 1)
        return f"mid_block.{_MIDDLE[part]}.{RESNET.get(inner, inner)}"
    number, part, inner = rest.split(".", 2)
    if block == "input_blocks":
        level, index = divmod(int(number) - 1, layers + 1)
        if inner == "op":
            return f"down_blocks.{level}.downsamplers.0.conv"
        stem = f"down_blocks.{level}"
    else:
        level, index = divmod(int(number), layers + 1)
        stem = f"up_blocks.{level}"
        if inner == "conv":
            return f"{stem}.upsamplers.0.conv"
    return f"{stem}.resnets.{index}.{RESNET[inner]}" if part == "0" else f"{stem}.attentions.{index}.{inner}"


def to_original_path(path: str, layers: int = LAYERS, bare: tuple[int, ...] = ()) -> str:
    """The original file's path of a diffusers module. `bare` are the levels on the way up that have no attention."""
    if path in _ORIGINAL_ENDS:
        return _ORIGINAL_ENDS[path]
    block, rest = path.split(".", 1)
    if block == "mid_block":
        kind, index, inner = rest.split(".", 2)
        return f"middle_block.{_ORIGINAL_MIDDLE[f'{kind}.{index}']}.{_ORIGINAL_RESNET.get(inner, inner)}"
    level, kind, index, inner = rest.split(".", 3)
    start = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{1 + start + layers}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{start + layers}.{1 if int(level) in bare else 2}.conv"
    number = start + int(index)
    stem = f"input_blocks.{1 + number}" if block == "down_blocks" else f"output_blocks.{number}"
    return f"{stem}.0.{_ORIGINAL_RESNET[inner]}" if kind == "resnets" else f"{stem}.1.{inner}"


def unet_original_keys(config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
    """Returns {diffusers key: original key} of a whole UNet of this configuration."""
    bare = tuple(level for level, kind in enumerate(config["up_block_types"]) if kind == "UpBlock2D")
    layers = int(config["layers_per_block"])
    parts = ((key, *key.rpartition(".")) for key in keys)
    return {key: Part(f"{to_original_path(path, layers, bare)}.{name}") for key, path, _, name in parts}


def unet_lora_map(widths: Widths, bare: tuple[int, ...] = ()) -> KeyMap:
    """The modules of a LoRA file, each by itself: diffusers path to original path, whichever of them the file has."""
    prefixes = (*UNET_LORA_PREFIXES, "unet.", "diffusion_model.")
    stems = ((key, next((prefix for prefix in prefixes if key.startswith(prefix)), "")) for key in widths.inputs)
    paths = [without_processor(dotted(key[len(prefix) :])) for key, prefix in stems]
    known, original = re.compile(UNET_LORA_DIFFUSERS), re.compile(UNET_LORA_NATIVE)
    found = [path for path in paths if known.fullmatch(path)]
    layers = widths.layers or layers_of(paths)
    found += [to_diffusers_path(path, layers) for path in paths if original.fullmatch(path)]
    return {f"{path}.weight": Part(f"{to_original_path(path, layers, bare)}.weight") for path in found}


def without_processor(path: str) -> str:
    """The path of a module that diffusers saved as a part of an attention processor."""
    plain = path.replace(".processor.", ".")
    return f"{plain}.0" if plain != path and plain.endswith(".to_out") else plain


def layers_of(paths: Iterable[str]) -> int:
    """Resnets per level on the way down of the UNet that a LoRA file is for: 2, as in SD and SDXL, or 1, as in KOALA and the small SDs.

    The latter where a resampling stands at a place that the former do not have it at, or something else at theirs, or where the file, in
    diffusers' names, reaches through several levels and nowhere beyond what a network with one of them has.
    """
    reach: dict[str, int] = {}
    for path in paths:
        if match := re.fullmatch(r"((?:down|up)_blocks\.\d+)\.(?:attentions|resnets)\.(\d+)\..*", path):
            reach[match[1]] = max(int(match[2]), reach.get(match[1], 0))
        elif match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.\d+\.(.*)", path):
            way, number, inner = match[1], int(match[2]), match[3]
            here = number > 0 and number % (LAYERS + 1) == (0 if way == "input" else LAYERS)
            if (inner in ("op", "conv")) != here and (way == "input" or inner == "conv"):
                return 1
    up, down = ([most for level, most in reach.items() if level.startswith(way)] for way in ("up", "down"))
    return 1 if len(up) > 1 and set(up) == {1} and set(down) == {0} else LAYERS


def dotted(path: str) -> str:
    """Writes "down_blocks_0_attentions_1_proj_in" as "down_blocks.0.attentions.1.proj_in"."""
    for word in _WORDS:
        path = re.sub(rf"(?<![a-z]){word}(?![a-z])", word.replace("_", "~"), path)
    return path.replace("_", ".").replace("~", "_")
