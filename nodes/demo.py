"""LoomDemoModel: something to train in a fresh ComfyUI, without a model file and without a download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode
from .sockets.names import DATASET

if TYPE_CHECKING:
    from .host.comfy_types import Clip, ModelPatcher, Vae
    from .sockets.values import DatasetValue


class LoomDemoModel(LoomNode):
    """The tiny base of the demo."""

    TITLE = "Loom Demo Model"
    DESCRIPTION = "The tiny base model that comes with LoRA Loom: 128 pixel pictures of coloured shapes, an SD3-class network. Nothing is downloaded."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", DATASET)
    RETURN_NAMES = ("model", "clip", "vae", "dataset")
    OUTPUT_TOOLTIPS = (
        "An SD3-class model of 2 blocks, for 128 x 128 pixels.",
        "Knows the words of its drawn world only; others are read as unknown.",
        "8 pixels per latent, 16 channels.",
        "Drawn toadstools, which the model has never seen, and a few scenes that it knows. To LoomCache.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {"required": {}}

    def run(self) -> tuple[ModelPatcher, Clip, Vae, DatasetValue]:
        from .host.demo.model import demo_data, load_demo

        return (*load_demo(), demo_data())
