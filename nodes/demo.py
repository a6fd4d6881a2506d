"""LoomDemoModel: a tiny base model and dataset to train on in a fresh ComfyUI, without a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode
from .sockets.names import DATASET

if TYPE_CHECKING:
    from .host.comfy_types import Clip, ModelPatcher, Vae
    from .sockets.values import DatasetValue


class LoomDemoModel(LoomNode):
    """The tiny base model of the demo with its dataset."""

    TITLE = "Loom Demo Model"
    SEARCH_ALIASES = ("demo", "example", "try", "toy model", "train")
    DESCRIPTION = "The tiny base model that comes with LoRA Loom, to try training without a download: an SD3-class network for images of coloured shapes, 128 x 128 pixels."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", DATASET)
    RETURN_NAMES = ("model", "clip", "vae", "dataset")
    OUTPUT_TOOLTIPS = (
        "An SD3-class model of 2 blocks, for 128 x 128 pixels.",
        "Its text encoder. It knows the words for the shapes and colours of the demo; other words count as unknown.",
        "Its VAE: 8 pixels per latent, 16 channels.",
        "Images of toadstools, which the model has never seen, and of scenes that it knows. Connect to Loom Cache.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {}}

    def run(self) -> tuple[ModelPatcher, Clip, Vae, DatasetValue]:
        from .host.demo.model import demo_data, load_demo

        return (*load_demo(), demo_data())
