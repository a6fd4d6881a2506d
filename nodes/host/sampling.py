"""One picture of a sweep through ComfyUI's own sampler. Node thread only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...trainer.config import GuidanceConfig
from ...trainer.records import Shot
from .apg import add_guidance

Conditioning = list[Any]


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What all cells share: encoders, and the prompts' encodings."""

    vae: Any
    prompts: Mapping[str, Conditioning]
    factor: int
    """Pixels per latent row or column."""


def open_studio(vae: Any, clip: Any, prompts: list[str], model_guidance: float) -> Studio:
    """Encode every prompt once."""
    encoded = {}
    for prompt in prompts:
        made = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        encoded[prompt] = [[tensor, {**extra, "guidance": model_guidance}] for tensor, extra in made]
    return Studio(vae=vae, prompts=encoded, factor=int(vae.spacial_compression_encode()))


def with_lora(model: Any, tensors: Mapping[str, Tensor], strength: float) -> Any:
    """A clone of the MODEL with a LoRA, as LoraLoaderModelOnly makes it."""
    import comfy.sd

    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(tensors), strength, 0)
    return patched


def with_guidance(model: Any, guidance: GuidanceConfig) -> Any:
    if guidance.method == "apg":
        return add_guidance(model, guidance.eta, guidance.norm_threshold, guidance.momentum, guidance.rescale)
    return add_guidance(model, 1.0, 0.0, 0.0, guidance.rescale) if guidance.rescale else model


def render(model: Any, studio: Studio, shot: Shot, scale: float) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    import comfy.sample

    recipe = shot.settings
    latents = empty_latents(model, studio.vae, recipe["size"], studio.factor)
    made = comfy.sample.sample(
        model, comfy.sample.prepare_noise(latents, shot.seed), recipe["steps"], scale, recipe["sampler"],
        recipe["scheduler"], studio.prompts[shot.prompt], studio.prompts[shot.negative], latents, seed=shot.seed,
        disable_pbar=True,
    )  # fmt: skip
    pixels: Tensor = studio.vae.decode(made)
    return pixels.reshape(-1, *pixels.shape[-3:])[0].movedim(-1, 0).float().cpu() * 2 - 1


def empty_latents(model: Any, vae: Any, size: tuple[int, int], factor: int) -> Tensor:
    """Zeros as EmptyLatentImage gives them, in the model's own channels and dimensions."""
    latent_format = model.get_model_object("latent_format")
    width, height = size
    shape = [1, int(latent_format.latent_channels), height // factor, width // factor]
    if getattr(latent_format, "latent_dimensions", 2) == 3:
        shape.insert(2, 1)
    return torch.zeros(shape)
