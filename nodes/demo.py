"""LoomDemoModel: something to train in a fresh ComfyUI, without a model file and without a download."""

from typing import Any

from .sockets.names import DATASET
from .widgets import CATEGORY


class LoomDemoModel:
    """The tiny base of the demo."""

    CATEGORY = CATEGORY
    DESCRIPTION = "The tiny base model that comes with LoRA Loom: 128 pixel pictures of coloured shapes, an SD3-class network. Nothing is downloaded."
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", DATASET)
    RETURN_NAMES = ("model", "clip", "vae", "dataset")
    OUTPUT_TOOLTIPS = (
        "An SD3-class model of 2 blocks, for 128 x 128 pixels.",
        "Knows the words of its drawn world only; others are read as unknown.",
        "8 pixels per latent, 16 channels.",
        "Drawn toadstools, which the model has never seen, and a few scenes that it knows. To LoomCache.",
    )
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[Any, ...]:
        from .host.demo.model import demo_data, load_demo

        return (*load_demo(), demo_data())
