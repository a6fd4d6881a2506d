"""LoomLoraInspect, LoomLoraResize, LoomLoraMerge: work on LoRA files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode, NodeOutput, Widget
from .train import ANY
from .widgets import link, text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .host.comfy_types import Clip, ModelPatcher
    from .host.lora_files import MergeInputs, ResizeInputs

DTYPES = ["auto", "float32", "bfloat16", "float16"]
METHODS = ["rank", "sv_ratio", "sv_fro", "sv_cumulative"]
_RESULTS = (ANY, "STRING")
_RESULT_NAMES = ("lora_name", "report")
_RESULT_TOOLTIPS = ("The new file, for LoraLoader.", "What was kept, and what it costs.")


def _lora(tooltip: str) -> Widget:
    from .host.sweep.sampler_names import lora_names

    return lora_names(), {"tooltip": tooltip}


def _keep(least_rank: int, rank: int, rank_help: str) -> dict[str, Widget]:
    return {
        "rank": ("INT", {"default": rank, "min": least_rank, "max": 4096, "tooltip": rank_help}),
        "method": (
            METHODS,
            {
                "default": "rank",
                "tooltip": "What decides the rank of each module: rank alone; sv_ratio: singular values above 1 / amount of the largest; sv_fro, sv_cumulative: as few as hold that share of the norm, of the sum.",
            },
        ),
        "amount": (
            "FLOAT",
            {
                "default": 0.0,
                "min": 0.0,
                "max": 1000.0,
                "step": 0.01,
                "tooltip": "For the sv_ methods, e.g. 0.9 of the norm for sv_fro; 0 with rank.",
            },
        ),
        "dtype": (DTYPES, {"default": "auto", "tooltip": "Number format of the new file; auto keeps that of the old."}),
    }


def _save_as(default: str) -> Widget:
    return text(
        default,
        "Name of the new file in models/loras/lora_loom, without an ending. A file of this name is replaced only if one of these nodes made it.",
    )


class _ChangesWithItsFiles(LoomNode):
    """A node that runs again once a file which it reads has changed."""

    @classmethod
    def IS_CHANGED(cls, **inputs: object) -> str:
        from .host.lora_files import stamps

        return stamps([value for name, value in inputs.items() if name.startswith("lora")])


class LoomLoraInspect(_ChangesWithItsFiles):
    """Look into a LoRA file."""

    TITLE = "Loom LoRA Inspect"
    DESCRIPTION = "What a LoRA file holds: whose it is, which keys ComfyUI matches, ranks, norms per block, broken tensors, metadata."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {"lora_name": _lora("The file, as LoraLoader lists it.")},
            "optional": {
                "model": link("MODEL", "Counts which of the file's modules ComfyUI will match in this model."),
                "clip": link("CLIP", "The same for text encoders."),
            },
        }

    def run(self, lora_name: str, model: ModelPatcher | None = None, clip: Clip | None = None) -> NodeOutput:
        from .host.lora_files import inspected

        report = inspected(lora_name, model, clip)
        return {"ui": {"text": [report]}, "result": (report,)}


class LoomLoraResize(_ChangesWithItsFiles):
    """A LoRA of fewer ranks."""

    TITLE = "Loom LoRA Resize"
    DESCRIPTION = "Makes a LoRA smaller by singular values, and says how much of its change is kept."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = _RESULT_TOOLTIPS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "lora_name": _lora("The file, as LoraLoader lists it."),
                **_keep(0, 16, "Largest rank of a module; 0 is no limit where a method is given."),
                "save_as": _save_as("resized"),
            }
        }

    def run(self, **inputs: Unpack[ResizeInputs]) -> NodeOutput:
        from .host.lora_files import resized

        name, report = resized(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}


class LoomLoraMerge(_ChangesWithItsFiles):
    """Two LoRAs as one."""

    TITLE = "Loom LoRA Merge"
    DESCRIPTION = "The exact weighted sum of two LoRAs' changes as one file; chain several. Its rank is cut afterwards if rank or a method says so."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = _RESULT_TOOLTIPS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        weight = ("FLOAT", {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.05, "tooltip": "Its strength in the sum; 0 leaves it out."})  # fmt: skip
        return {
            "required": {
                "lora_1": _lora("A file, as LoraLoader lists it, or another node's lora_name."),
                "weight_1": weight,
                "lora_2": _lora("A file of the same family and layout."),
                "weight_2": weight,
                **_keep(0, 0, "Cut to this rank at most; 0 keeps the sum exact, its ranks add up."),
                "save_as": _save_as("merged"),
            }
        }

    def run(self, **inputs: Unpack[MergeInputs]) -> NodeOutput:
        from .host.lora_files import merged

        name, report = merged(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}
