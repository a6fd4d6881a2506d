"""Similarity of images and prompts: what an encoder of images offers, and a CLIP in a folder as one. N images, M others, D width of
the common space.

CLIP-I and CLIP-T as DreamBooth defines them (arXiv 2208.12242, 5.1): mean cosine between the embeddings of a generated
image and of the real images, and cosine between the embeddings of an image and of its prompt.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ..errors import ModelFileError
from ..types import Array
from .images.load import as_shown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

BATCH = 16
Feature: TypeAlias = Any
"""What an encoder makes of an image or a prompt; only the encoder itself reads it."""


class ImageEncoder(Protocol):
    """What compares images with each other, and with prompts if it has a text encoder."""

    name: str

    def images(self, paths: Sequence[Path]) -> list[Feature]:
        """Features of each image, for `compare`."""

    def texts(self, prompts: Sequence[str]) -> list[Feature]:
        """Features of each prompt; empty for an encoder without a text encoder."""

    def compare(self, first: Sequence[Feature], second: Sequence[Feature]) -> Array:
        """Similarity of each of N features to each of M, (N, M), 1 for equal ones."""


class ClipFiles:
    """A transformers CLIPModel with its processor in one folder. Nothing is downloaded."""

    def __init__(self, folder: Path, option: str = "clip_model") -> None:
        """`option` is the name in messages. Raises ModelFileError for a folder that holds no CLIP."""
        from transformers import CLIPModel, CLIPProcessor

        check_clip(folder, option)
        try:
            self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelFileError(f"{option} = {str(folder)!r} is not a usable CLIP: {error}") from error
        self.name = f"CLIP ({folder.name})"

    def images(self, paths: Sequence[Path]) -> list[Array]:
        """Unit vectors, (D,) each."""
        found: list[Array] = []
        for start in range(0, len(paths), BATCH):
            images = [as_shown(path) for path in paths[start : start + BATCH]]
            found += self._run(self._model.get_image_features, images=images)
        return found

    def texts(self, prompts: Sequence[str]) -> list[Array]:
        """Unit vectors, (D,) each; prompts are cut to the model's length."""
        return self._run(self._model.get_text_features, text=list(prompts), padding=True, truncation=True)

    def _run(self, features: "Callable[..., Tensor]", **inputs: object) -> list[Array]:
        import torch

        with torch.no_grad():
            made = features(**self._processor(return_tensors="pt", **inputs))
        tensor: Tensor = getattr(made, "pooler_output", made)  # transformers 5 wraps the features
        return unit_rows(tensor.float().cpu().numpy())

    def compare(self, first: Sequence[Array], second: Sequence[Array]) -> Array:
        """Cosines, (N, M)."""
        return cosines(first, second)


def check_clip(folder: Path, option: str) -> None:
    """Raise ModelFileError, naming the option, unless a folder looks like a CLIP of transformers. Nothing is loaded."""
    if not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{option} = {str(folder)!r} holds no config.json: name a folder with a CLIP model, its tokenizer and preprocessor as transformers saves them"
        )


def unit_rows(values_ND: "ArrayLike") -> list[Array]:
    """Each row of (N, D) scaled to length 1, as N arrays (D,)."""
    rows = np.asarray(values_ND, dtype=np.float64)
    return list(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12))


def cosines(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """Cosines of N unit vectors with M others, (N, M)."""
    return np.stack(first) @ np.stack(second).T
