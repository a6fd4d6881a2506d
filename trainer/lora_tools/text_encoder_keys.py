"""The tensors of a base model's CLIP text encoders that a LoRA file may change, under every key that ComfyUI accepts.

It follows ComfyUI's `model_lora_keys_clip` and its conversion of open_clip weights, which have q, k and v in one tensor and the
projection transposed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base_model import Base
from ..storage.tensor_file import TensorFile
from ..types import Shapes
from .merge_base import WeightSlice, WeightSlices

SINGLE = ("lora_te_", "lora_te1_", "text_encoder.")
FIRST = ("lora_te1_", "lora_te_", "text_encoder.")
SECOND = ("lora_te2_", "text_encoder_2.")
"""The prefixes that ComfyUI accepts before the path of a module. This project writes the first one."""
STEMS = {
    "cond_stage_model.transformer.": SINGLE,
    "cond_stage_model.model.transformer.": SINGLE,
    "conditioner.embedders.0.transformer.": FIRST,
    "conditioner.embedders.1.model.transformer.": SECOND,
    "text_encoders.clip_l.transformer.": FIRST,
    "text_encoders.clip_g.transformer.": SECOND,
}
"""{prefix of an encoder's keys in a whole checkpoint: the prefixes of its modules in LoRA files}."""
PROJECTION = "text_projection"
_PLAIN = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])\.weight")
_OPEN_CLIP = re.compile(r"resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_fc\.weight|mlp\.c_proj\.weight)")  # fmt: skip
_RENAMED = {"attn.out_proj.weight": "self_attn.out_proj", "mlp.c_fc.weight": "mlp.fc1", "mlp.c_proj.weight": "mlp.fc2"}


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A text encoder of a base model: its files, and the weights that a LoRA may change."""

    files: tuple[Path, ...]
    mark: str
    """Prefix of the tensor keys in `slices`, which distinguishes encoders in separate files."""
    slices: WeightSlices
    """{module key: its weight's slices}, under every accepted key."""
    own: tuple[str, ...]
    """The module keys that this project writes."""


def text_parts(base: Base) -> list[TextPart]:
    """The CLIP text encoders of a base model; T5 and language models are not included. Only headers are read."""
    if base.source.is_diffusers:
        return [part for name, prefixes in (("text_encoder", SINGLE), ("text_encoder_2", SECOND)) if (part := _folder_part(base.source.path, name, prefixes))]  # fmt: skip
    shapes = base.source.headers[base.source.path]
    parts = []
    for stem, prefixes in STEMS.items():
        inner = {key.removeprefix(stem): shape for key, shape in shapes.items() if key.startswith(stem)}
        modules = dict(_modules(inner, stem))
        beside = stem.removesuffix("transformer.") + PROJECTION
        if modules and beside in shapes:  # open_clip multiplies by it from the other side
            modules[PROJECTION] = WeightSlice(beside, transposed=True)
        if modules:
            parts.append(_part((base.source.path,), "", modules, prefixes))
    return parts


def _folder_part(path: Path, name: str, prefixes: tuple[str, ...]) -> TextPart | None:
    files = sorted((path / name).glob("*.safetensors"))
    files = [file for file in files if ".fp16" not in file.name] or files
    shapes = {key: shape for file in files for key, shape in TensorFile(file).shapes().items()}
    modules = dict(_modules(shapes, mark := f"{name}/"))
    several = (path / "text_encoder_2").is_dir()
    return (
        _part(tuple(files), mark, modules, FIRST if several and prefixes == SINGLE else prefixes) if modules else None
    )


def _part(files: tuple[Path, ...], mark: str, modules: dict[str, WeightSlice], prefixes: tuple[str, ...]) -> TextPart:
    spelled = {
        prefix: {_spell(prefix, path): (piece,) for path, piece in modules.items() if _takes(prefix, path)}
        for prefix in prefixes
    }
    every = {key: slices for keys in spelled.values() for key, slices in keys.items()}
    return TextPart(files=files, mark=mark, slices=every, own=tuple(spelled[prefixes[0]]))


def _takes(prefix: str, path: str) -> bool:
    """Whether ComfyUI takes a module by this prefix: the projection behind the last layer by OneTrainer's names alone."""
    return path != PROJECTION or prefix in ("lora_te1_", "lora_te2_")


def _spell(prefix: str, path: str) -> str:
    return prefix + (path.replace(".", "_") if prefix.endswith("_") else path)


def _modules(shapes: Shapes, stem: str) -> Iterator[tuple[str, WeightSlice]]:
    """Returns (module path in transformers, slice that holds its weight)."""
    for key, shape in shapes.items():
        if key == f"{PROJECTION}.weight":
            yield PROJECTION, WeightSlice(stem + key)
        elif match := _PLAIN.fullmatch(key):
            yield f"text_model.encoder.layers.{match[1]}.{match[2]}", WeightSlice(stem + key)
        elif match := _OPEN_CLIP.fullmatch(key):
            layer = f"text_model.encoder.layers.{match[1]}"
            if match[2] in _RENAMED:
                yield f"{layer}.{_RENAMED[match[2]]}", WeightSlice(stem + key)
            else:
                rows = shape[0] // 3
                for number, letter in enumerate("qkv"):
                    yield (
                        f"{layer}.self_attn.{letter}_proj",
                        WeightSlice(stem + key, (number * rows, (number + 1) * rows)),
                    )
