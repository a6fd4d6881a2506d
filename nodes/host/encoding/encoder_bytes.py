"""How much memory ComfyUI's VAE and text encoders take while LoomCache fills, from a rehearsal of their own code on shapes."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....trainer.data.cache.keys import Work
from ....trainer.memory_plan.base_sizes import tensor_bytes
from ....trainer.memory_plan.card import is_wanted
from ....trainer.memory_plan.rehearsal import most_live, tensors_of
from ....trainer.memory_plan.shapes_only import META
from ....trainer.memory_plan.structure import structure_of
from ....trainer.types import Size
from ..backend.shadow import build_shadow
from ..comfy_types import Clip, Vae
from .trained_text import clip_network

logger = logging.getLogger("lora_loom")
TILE = 512
"""Pixels of a side of the tiles that ComfyUI's VAE encodes in."""
RGB = 3
IN_SLICES = "normal_attention"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is to be encoded at once."""

    image: Size
    """(width, height) of the largest image, in pixels."""
    images: int
    """How many at a time."""
    text: str
    """The longest one."""
    tiled: bool = False


def encoding_bytes(vae: Vae, clip: Clip, work: Work, vae_batch: int, *, tiled: bool) -> int:
    """Bytes at the highest moment of encoding what a cache lacks: the weights of the encoders that are needed, and what they compute.

    0 where nothing is encoded or runs are not to be planned. Of a text encoder that does not run on shapes the weights alone count.
    """
    if not is_wanted() or not (work.views or work.prompts):
        return 0
    sizes = [view.geometry.target for view in work.views.values()]
    largest = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    longest = max((prompt.text for prompt in work.prompts.values()), key=len, default="")
    asked = Encoding(image=largest, images=min(vae_batch, max(1, len(sizes))), text=longest, tiled=tiled)
    weights = (bytes_of(vae.first_stage_model) if sizes else 0) + (bytes_of(clip.cond_stage_model) if longest else 0)
    return weights + max(_of_images(vae, asked) if sizes else 0, _of_text(clip, asked.text) if longest else 0)


def bytes_of(module: nn.Module) -> int:
    """Bytes of a network's weights, each storage once."""
    found: dict[int, int] = {}
    for tensor in tensors_of(module):
        found[tensor.data_ptr()] = tensor_bytes(tensor)
    return sum(found.values())


@torch.inference_mode(False)
def _of_images(vae: Vae, asked: Encoding) -> int:
    width, height = (min(side, TILE) if asked.tiled else side for side in asked.image)
    video = getattr(vae, "latent_dim", 2) == 3
    shape = (1 if video else asked.images, RGB, *((1,) if video else ()), height, width)

    def rehearsed() -> int:
        network: Any = vae_structure(build_shadow(vae.first_stage_model, dict(vae.first_stage_model.state_dict())))
        pixels = torch.empty(shape, dtype=dtype_of(vae), device=META)
        return most_live(network, lambda: network.encode(pixels))

    return counted(rehearsed, "VAE", estimate(vae, "memory_used_encode", shape))


@torch.inference_mode(False)
def _of_text(clip: Clip, text: str) -> int:
    if not hasattr(clip.cond_stage_model, "encode_token_weights"):
        return 0  # not one of ComfyUI's text encoders: the demo's, whose activations are a megabyte

    def rehearsed() -> int:
        network: Any = structure_of(clip_network(clip))
        tokens = clip.tokenize(text)
        return most_live(network, lambda: network.encode_token_weights(tokens))

    return counted(rehearsed, "text encoder")


def vae_structure(network: nn.Module) -> nn.Module:
    """A VAE's shadow without weights. Attention that ComfyUI computes in slices by the memory that is free is computed in one here,
    as it is where there is enough."""
    made = structure_of(network)
    for part in made.modules():
        if getattr(vars(part).get("optimized_attention"), "__name__", "") == IN_SLICES:
            vars(part)["optimized_attention"] = _in_one
    return made


def _in_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ComfyUI's normal_attention of (B, C, H, W) in one slice: the same tensors at the same time."""
    shape = q.shape
    q, k, v = (x.flatten(2) for x in (q, k, v))
    out = torch.zeros_like(k)
    scores = torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5
    shares = torch.softmax(scores, dim=2).permute(0, 2, 1)
    del scores
    out[:] = torch.bmm(v, shares)
    return out.reshape(shape)


def dtype_of(vae: Vae) -> torch.dtype:
    """The dtype that a VAE computes in."""
    found: torch.dtype = getattr(vae, "vae_dtype", torch.float32)
    return found


def estimate(vae: Vae, name: str, shape: Sequence[int]) -> int:
    """ComfyUI's own estimate, memory_used_encode or memory_used_decode, for a batch of this shape; 0 for a VAE without one."""
    law: Callable[[Sequence[int], object], float] | None = getattr(vae, name, None)
    return int(law(shape, dtype_of(vae))) if law else 0


def counted(rehearsed: Callable[[], int], what: str, otherwise: int = 0) -> int:
    """Bytes by a rehearsal; `otherwise` for a network that does not run on shapes."""
    try:
        return rehearsed()
    except Exception as error:  # noqa: BLE001 - a network may do anything with tensors that have no values
        logger.info("LoRA Loom: the memory of the %s is not predicted: %s: %s", what, type(error).__name__, error)
        return otherwise
