"""LoomImageStrip: a labelled strip of any images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode, NodeOutput
from .widgets import link, text

if TYPE_CHECKING:
    from torch import Tensor


class LoomImageStrip(LoomNode):
    """Draws any images side by side, with labels."""

    TITLE = "Loom Image Strip"
    SEARCH_ALIASES = ("grid", "contact sheet", "xy plot", "compare images", "image grid")
    DESCRIPTION = "Draws images side by side with labels: those of an IMAGE batch, or of a folder, such as the one that lora-loom submit fetched into. For the sweeps of Loom Sweep there is Loom Strip."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("strip",)
    OUTPUT_TOOLTIPS = ("The strip as one image.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "labels": text("", "One label a line, in the order of the images. Empty: their numbers, or what differs of their file names.", multiline=True),
                "per_row": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "Images in a row. 0: all in one row."}),
                "title": text("", "Title of the strip."),
            },
            "optional": {
                "images": link("IMAGE", "A batch of images."),
                "folder": text("", "A folder of images in place of a batch, such as one in ComfyUI's input or output directory. Files sort by number."),
            },
        }  # fmt: skip

    @classmethod
    def IS_CHANGED(cls, folder: str = "", **inputs: object) -> str:
        from .host.image_strip import state_of

        return state_of(folder)

    def run(self, labels: str, per_row: int, title: str, images: Tensor | None = None, folder: str = "") -> NodeOutput:
        from .host.image_strip import drawn_images

        shown, image = drawn_images(images, folder, labels, per_row, title)
        return {"ui": {"images": [shown]}, "result": (image,)}
