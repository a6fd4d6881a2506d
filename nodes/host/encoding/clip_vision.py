"""Similarity of images by a connected CLIP_VISION."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....trainer.data.clip import cosines, unit_rows
from ....trainer.errors import ModelFileError
from ..comfy_types import ClipVision
from .images import files_to_image

Features = NDArray[np.float64]


class HostVision:
    """A CLIP_VISION as image encoder for scores. It has no text encoder, so prompts are not compared. Node thread only."""

    def __init__(self, clip_vision: ClipVision) -> None:
        self._model = clip_vision
        self.name = f"the connected CLIP_VISION ({type(clip_vision.model).__name__})"

    def images(self, paths: Sequence[Path]) -> list[Features]:
        """The embedding of each image file as a unit vector. Raises ModelFileError for an encoder without image embeddings."""
        return [self._embed(path) for path in paths]

    def _embed(self, path: Path) -> Features:
        embedding = self._model.encode_image(files_to_image([path]))["image_embeds"]
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
