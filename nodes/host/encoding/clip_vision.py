"""A CLIP_VISION of the graph, for how alike pictures are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....trainer.errors import ModelFileError
from ....trainer.score.clip import cosines, unit_rows
from ..comfy_types import ClipVision
from .images import files_to_image

Features = NDArray[np.float64]


class HostVision:
    """The engine's picture encoder over ComfyUI's. It has no text tower, so prompts are not compared. Node thread only."""

    def __init__(self, clip_vision: ClipVision) -> None:
        self._model = clip_vision
        self.name = f"the connected CLIP_VISION ({type(clip_vision.model).__name__})"

    def images(self, paths: Sequence[Path]) -> list[Features]:
        """Unit vectors. Raises ModelFileError for an encoder that gives no embedding of the whole picture."""
        return [self._embed(path) for path in paths]

    def _embed(self, path: Path) -> Features:
        embedding = self._model.encode_image(files_to_image([path]))["image_embeds"]
        if embedding is None:
            raise ModelFileError(f"{self.name} gives no image embedding: connect a CLIP, or disconnect it")
        [row] = unit_rows(embedding.flatten(1).float().cpu().numpy())
        return row

    def texts(self, prompts: Sequence[str]) -> list[Features]:
        """None."""
        return []

    def compare(self, first: Sequence[Features], second: Sequence[Features]) -> Features:
        """Cosines, (N, M)."""
        return cosines(first, second)
