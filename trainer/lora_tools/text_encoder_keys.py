"""Where a base keeps the CLIP text encoders that a LoRA file may change beside the network, under ComfyUI's names for them.

Written out from ComfyUI's `model_lora_keys_clip` and its reading of open_clip weights: q, k and v stand there in one tensor.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base_model import Base
from ..storage.tensor_file import TensorFile
from ..types import Shapes
from .merge_base import WeightSlice

Found = dict[str, tuple[WeightSlice, ...]]
SINGLE = ("lora_te_", "lora_te1_", "text_encoder.")
FIRST = ("lora_te1_", "lora_te_", "text_encoder.")
SECOND = ("lora_te2_", "text_encoder_2.")
"""What ComfyUI takes before the path of a module; the first is what is written here."""
STEMS = {
    "cond_stage_model.transformer.": SINGLE,
    "cond_stage_model.model.transformer.": SINGLE,
    "conditioner.embedders.0.transformer.": FIRST,
    "conditioner.embedders.1.model.transformer.": SECOND,
    "text_encoders.clip_l.transformer.": FIRST,
    "text_encoders.clip_g.transformer.": SECOND,
}
"""{where a whole checkpoint keeps an encoder: its prefixes}."""
_PLAIN = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])\.weight")
_OPEN_CLIP = re.compile(r"resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_fc\.weight|mlp\.c_proj\.weight)")  # fmt: skip
_RENAMED = {"attn.out_proj.weight": "self_attn.out_proj", "mlp.c_fc.weight": "mlp.fc1", "mlp.c_proj.weight": "mlp.fc2"}


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """An encoder's files and what of them a LoRA may change."""

    files: tuple[Path, ...]
    mark: str
    """Stands before this part's keys in `places`, so that encoders in files of their own are told apart."""
    places: Found
    """{module key: its place}, under every name."""
    own: tuple[str, ...]
    """The keys among them that are written here."""


def text_parts(base: Base) -> list[TextPart]:
    """Only headers are read. A base without text encoders has none; T5 and language models are not looked at."""
    if base.source.is_diffusers:
        return [part for name, prefixes in (("text_encoder", SINGLE), ("text_encoder_2", SECOND)) if (part := _folder_part(base.source.path, name, prefixes))]  # fmt: skip
    shapes = base.source.headers[base.source.path]
    parts = []
    for stem, prefixes in STEMS.items():
        inner = {key.removeprefix(stem): shape for key, shape in shapes.items() if key.startswith(stem)}
        if found := dict(_modules(inner, stem)):
            parts.append(_part((base.source.path,), "", found, prefixes))
    return parts


def _folder_part(path: Path, name: str, prefixes: tuple[str, ...]) -> TextPart | None:
    files = sorted((path / name).glob("*.safetensors"))
    files = [file for file in files if ".fp16" not in file.name] or files
    shapes = {key: shape for file in files for key, shape in TensorFile(file).shapes().items()}
    found = dict(_modules(shapes, mark := f"{name}/"))
    several = (path / "text_encoder_2").is_dir()
    return _part(tuple(files), mark, found, FIRST if several and prefixes == SINGLE else prefixes) if found else None


def _part(files: tuple[Path, ...], mark: str, found: dict[str, WeightSlice], prefixes: tuple[str, ...]) -> TextPart:
    spelled = {prefix: {_spell(prefix, path): (place,) for path, place in found.items()} for prefix in prefixes}
    every: Found = {key: places for keys in spelled.values() for key, places in keys.items()}
    return TextPart(files=files, mark=mark, places=every, own=tuple(spelled[prefixes[0]]))


def _spell(prefix: str, path: str) -> str:
    return prefix + (path.replace(".", "_") if prefix.endswith("_") else path)


def _modules(shapes: Shapes, stem: str) -> Iterator[tuple[str, WeightSlice]]:
    """(path as transformers has it, where its weight is)."""
    for key, shape in shapes.items():
        if match := _PLAIN.fullmatch(key):
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
