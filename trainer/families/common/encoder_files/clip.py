"""CLIP text models out of a whole checkpoint: transformers' classes over the file's tensors, renamed.

SD1 and the first encoder of SDXL have transformers' names; SD2 and the second have open_clip's, with query, key and value in one
tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ....errors import ModelFileError
from ....types import Shapes
from ..family import Loading
from ..keymap import KeyMap, Part, count_blocks, listing, rename, split_rows, to_diffusers

T = TypeVar("T")
HEAD = 64
"""Width of an attention head in every CLIP text model of Stable Diffusion."""
PROJECTION = "text_projection"
UNREAD = ("embeddings.position_ids", "logit_scale", "text_model.embeddings.position_ids")
"""Tensors of such files that decide nothing."""


@dataclass(frozen=True)
class ClipPlace:
    """Where a text model lies in a checkpoint."""

    prefix: str
    open_clip: bool


PLACES = {
    "text_encoder": (
        ClipPlace("cond_stage_model.transformer.", open_clip=False),
        ClipPlace("cond_stage_model.model.", open_clip=True),
        ClipPlace("conditioner.embedders.0.transformer.", open_clip=False),
    ),
    "text_encoder_2": (ClipPlace("conditioner.embedders.1.model.", open_clip=True),),
}
"""{folder that a diffusers model has for it: where it may lie}."""


def place_of(name: str, shapes: Shapes) -> ClipPlace | None:
    """Returns where the text model called `name` in a diffusers folder lies in a file; None where the file has none."""
    return next((place for place in PLACES[name] if any(key.startswith(place.prefix) for key in shapes)), None)


def structure(name: str, place: ClipPlace, shapes: Shapes) -> tuple[type[nn.Module], Any]:
    """Returns transformers' class and configuration, read off the file's shapes. Raises ModelFileError."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    inner = _inner(place, shapes)
    keys = _key_map(place, inner)
    try:
        words, width = inner[keys["text_model.embeddings.token_embedding.weight"].native]
        config = CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=inner[keys["text_model.encoder.layers.0.mlp.fc1.weight"].native][0],
            num_hidden_layers=_depth(place, inner),
            num_attention_heads=max(1, width // HEAD),
            max_position_embeddings=inner[keys["text_model.embeddings.position_embedding.weight"].native][0],
            hidden_act="gelu" if place.open_clip else "quick_gelu",
            projection_dim=inner.get(PROJECTION, (0, width))[1],
            bos_token_id=words - 2,
            eos_token_id=words - 1,
        )
    except KeyError as error:
        raise ModelFileError(
            f"the checkpoint's text encoder lacks {place.prefix}{error.args[0]}: copy it again"
        ) from error
    projects = name == "text_encoder_2"
    return (CLIPTextModelWithProjection if projects else CLIPTextModel), config


def load_clip(name: str, place: ClipPlace, stored: Mapping[str, Tensor], loading: Loading) -> nn.Module:
    """The text model over a file's tensors, frozen. Raises ModelFileError for missing or unexpected ones."""
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.items()}
    kind, config = structure(name, place, shapes)
    if loading.device.type == "meta":
        with torch.device("meta"):
            return kind(config).to(loading.dtype).requires_grad_(False).eval()
    tensors = _renamed(place, stored, projects=name == "text_encoder_2")
    module, found = kind.from_pretrained(  # type: ignore[attr-defined]
        None,
        config=config,
        state_dict=tensors,
        torch_dtype=loading.dtype,
        use_safetensors=True,
        output_loading_info=True,
    )
    odd = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])})
    if odd:  # the library leaves these random
        raise ModelFileError(f"the checkpoint's text encoder does not fit CLIP: {listing('missing', odd)}copy it again")
    return module.to(loading.device).requires_grad_(False).eval()


def _renamed(place: ClipPlace, stored: Mapping[str, Tensor], *, projects: bool) -> dict[str, Tensor]:
    inner = _inner(place, stored)
    tensors = to_diffusers(inner, _key_map(place, inner), (*UNREAD, PROJECTION))
    if projects and PROJECTION in inner:
        tensors[f"{PROJECTION}.weight"] = inner[PROJECTION].T.contiguous()  # it is multiplied from the right
    return tensors


def _inner(place: ClipPlace, named: Mapping[str, T]) -> dict[str, T]:
    return {key.removeprefix(place.prefix): value for key, value in named.items() if key.startswith(place.prefix)}


def _depth(place: ClipPlace, inner: Mapping[str, object]) -> int:
    stem = "transformer.resblocks" if place.open_clip else "encoder.layers"
    return max(count_blocks(inner, stem), count_blocks(inner, f"text_model.{stem}"))


def _key_map(place: ClipPlace, inner: Mapping[str, object]) -> KeyMap:
    """Returns {transformers' key, with text_model: key in the file, less its prefix}."""
    depth = _depth(place, inner)
    return _open_clip_keys(depth, inner) if place.open_clip else _plain_keys(inner)


def _plain_keys(inner: Mapping[str, object]) -> KeyMap:
    return {
        f"text_model.{key.removeprefix('text_model.')}": Part(key)
        for key in inner
        if key not in UNREAD and not key.startswith(PROJECTION)
    }


def _open_clip_keys(depth: int, inner: Mapping[str, object]) -> KeyMap:
    keys = rename([("ln_final", "text_model.final_layer_norm")])
    keys["text_model.embeddings.token_embedding.weight"] = Part("token_embedding.weight")
    keys["text_model.embeddings.position_embedding.weight"] = Part("positional_embedding")
    for i in range(depth):
        old, new = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        pairs = [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]
        keys |= rename([(f"{old}.{a}", f"{new}.{b}") for a, b in [*pairs, ("attn.out_proj", "self_attn.out_proj")]])
        width = _width(inner, f"{old}.ln_1.weight")
        for suffix in ("weight", "bias"):
            rows = split_rows(
                f"{old}.attn.in_proj_{suffix}", [f"{new}.self_attn.{x}_proj" for x in "qkv"], (width,) * 3, ("",)
            )
            keys |= {f"{path}.{suffix}": part for path, part in rows.items()}
    return keys


def _width(inner: Mapping[str, object], key: str) -> int:
    value = inner.get(key, (0,))
    return int(value.shape[0] if isinstance(value, Tensor) else value[0])  # type: ignore[index]
