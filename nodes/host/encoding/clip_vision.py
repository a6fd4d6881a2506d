"""Similarity of images by a connected CLIP_VISION: in the node's thread by ComfyUI itself, while training by a shadow of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....trainer.data.clip import cosines, unit_rows
from ....trainer.errors import ModelFileError
from ..backend.shadow import build_shadow
from ..comfy_types import ClipVision
from .images import files_to_image

Features = NDArray[np.float64]


class HostVision:
    """A CLIP_VISION as image encoder for scores. It has no text encoder, so prompts are not compared."""

    def __init__(self, clip_vision: ClipVision, embed: Callable[[Tensor], Tensor | None] | None = None) -> None:
        """`embed` makes image embeddings (B, width) of images (B, H, W, 3). Without it ComfyUI does, in the node's thread alone."""
        self._embed = embed or (lambda images: clip_vision.encode_image(images)["image_embeds"])
        self.name = f"the connected CLIP_VISION ({type(clip_vision.model).__name__})"

    def images(self, paths: Sequence[Path]) -> list[Features]:
        """The embedding of each image file as a unit vector. Raises ModelFileError for an encoder without image embeddings."""
        return [self._row(path) for path in paths]

    def _row(self, path: Path) -> Features:
        embedding = self._embed(files_to_image([path]))
        if embedding is None:
            raise ModelFileError(f"{self.name} gives no image embedding: connect a CLIP, or disconnect it")
        [row] = unit_rows(embedding.flatten(1).float().cpu().numpy())
        return row

    def texts(self, prompts: Sequence[str]) -> list[Features]:
        """An empty list: a CLIP_VISION has no text encoder."""
        return []

    def compare(self, first: Sequence[Features], second: Sequence[Features]) -> Features:
        """Cosines of N features with M others, (N, M)."""
        return cosines(first, second)


def vision_of_run(clip_vision: ClipVision) -> HostVision:
    """A CLIP_VISION for the thread of a run: a shadow over its weights as they lie now, which computes in float32 and never loads,
    casts or pages anything of ComfyUI's."""
    with torch.inference_mode(False):
        network = build_shadow(clip_vision.model, dict(clip_vision.model.state_dict()))
    prepare = _preprocessing(clip_vision)

    @torch.no_grad()
    def embed(images_BHW3: Tensor) -> Tensor | None:
        place = next(network.parameters()).device
        made = network(pixel_values=prepare(images_BHW3.to(place)).float(), intermediate_output=-2)
        embedding: Tensor | None = made[2]
        return embedding

    return HostVision(clip_vision, embed)


def _preprocessing(clip_vision: Any) -> Callable[[Tensor], Tensor]:
    """What ComfyUI does to images (B, H, W, 3) before this encoder, as `ClipVisionModel.encode_image` does it."""
    import comfy.clip_vision

    how = {
        name: getattr(clip_vision, f"image_{name}")
        for name in ("size", "mean", "std")
        if hasattr(clip_vision, f"image_{name}")
    }
    if getattr(clip_vision, "model_type", "") == "siglip2_vision_model":
        from comfy.clip_model import siglip2_preprocess

        patches = {
            "patch_size": clip_vision.config.get("patch_size", 16),
            "num_patches": clip_vision.config.get("num_patches", 256),
        }
        return lambda images: siglip2_preprocess(images, **patches, **how)
    return lambda images: comfy.clip_vision.clip_preprocess(images, **how)
