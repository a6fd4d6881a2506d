"""Latents as the VAE makes them, and as the network takes them: by the loaded model's own latent format."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..comfy_types import BaseModel


def latent_normaliser(model: BaseModel, *, inverse: bool = False) -> Callable[[Tensor], Tensor]:
    """Raw latents (B, C, h, w) to model space, or back, by a private copy of the model's own latent format."""
    with torch.inference_mode(False):
        latent_format = copy.deepcopy(model.latent_format)
    video = getattr(latent_format, "latent_dimensions", 2) == 3
    process = latent_format.process_out if inverse else latent_format.process_in

    def convert(latents_BCHW: Tensor) -> Tensor:
        made: Tensor = process(latents_BCHW.unsqueeze(2) if video else latents_BCHW)
        return made.squeeze(2) if video else made

    return convert
