"""LoomLoraInspect, LoomLoraResize, LoomLoraMerge: inspect and change LoRA files."""

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
_RESULT_TOOLTIPS = ("Name of the new file, for LoraLoader.", "Ranks, file sizes, and how much of the LoRA was kept.")


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
                "tooltip": "How the rank of each module is chosen. rank: rank alone. sv_ratio: singular values above 1 / amount of the largest. sv_fro, sv_cumulative: as few singular values as hold the share amount of the Frobenius norm, or of their sum.",
            },
        ),
        "amount": (
            "FLOAT",
            {
                "default": 0.0,
                "min": 0.0,
                "max": 1000.0,
                "step": 0.01,
                "tooltip": "Used by the sv_ methods, such as 0.9 with sv_fro. 0 with rank.",
            },
        ),
        "dtype": (DTYPES, {"default": "auto", "tooltip": "Dtype of the new file. auto keeps that of the source file."}),
    }


def _save_as(default: str) -> Widget:
    return text(
        default,
        "Name of the new file in models/loras/lora_loom, without extension. A file of this name is replaced only if one of these nodes wrote it.",
    )


class _ChangesWithItsFiles(LoomNode):
    """A node that runs again when a file that it reads has changed."""

    @classmethod
    def IS_CHANGED(cls, **inputs: object) -> str:
        from .host.lora_files import stamps

        return stamps([value for name, value in inputs.items() if name.startswith("lora")])


class LoomLoraInspect(_ChangesWithItsFiles):
    """Reports what a LoRA file contains."""

    TITLE = "Loom LoRA Inspect"
    SEARCH_ALIASES = ("lora", "lora info", "metadata", "lora rank")
    DESCRIPTION = "Reports what a LoRA file contains: model family, keys that ComfyUI matches, ranks, norms per block, damaged tensors, metadata."
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("The report as text.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {"lora_name": _lora("LoRA file, as LoraLoader lists it.")},
            "optional": {
                "model": link("MODEL", "Counts how many modules of the file ComfyUI matches in this model."),
                "clip": link("CLIP", "Counts how many modules of the file ComfyUI matches in this text encoder."),
            },
        }

    def run(self, lora_name: str, model: ModelPatcher | None = None, clip: Clip | None = None) -> NodeOutput:
        from .host.lora_files import inspected

        report = inspected(lora_name, model, clip)
        return {"ui": {"text": [report]}, "result": (report,)}


class LoomLoraResize(_ChangesWithItsFiles):
    """Reduces the rank of a LoRA."""

    TITLE = "Loom LoRA Resize"
    SEARCH_ALIASES = ("lora", "shrink lora", "svd", "lora rank", "resize lora")
    DESCRIPTION = (
        "Reduces the rank of a LoRA by singular value decomposition (SVD), and reports how much of its change is kept."
    )
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = _RESULT_TOOLTIPS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "lora_name": _lora("LoRA file, as LoraLoader lists it."),
                **_keep(0, 16, "Largest rank of a module. 0: no limit, with one of the sv_ methods."),
                "save_as": _save_as("resized"),
            }
        }

    def run(self, **inputs: Unpack[ResizeInputs]) -> NodeOutput:
        from .host.lora_files import resized

        name, report = resized(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}


class LoomLoraMerge(_ChangesWithItsFiles):
    """Merges two LoRAs into one."""

    TITLE = "Loom LoRA Merge"
    SEARCH_ALIASES = ("lora", "merge loras", "combine loras")
    DESCRIPTION = "Merges two LoRAs into one file: the exact weighted sum of their changes. Chain nodes for more. The rank of the sum can be reduced afterwards."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = _RESULT_TOOLTIPS
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        weight = ("FLOAT", {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.05, "tooltip": "Strength of this LoRA in the sum. 0 leaves it out."})  # fmt: skip
        return {
            "required": {
                "lora_1": _lora("A LoRA file as LoraLoader lists it, or the lora_name of another node."),
                "weight_1": weight,
                "lora_2": _lora("A LoRA file of the same model family and key format."),
                "weight_2": weight,
                **_keep(0, 0, "Largest rank of a module in the new file. 0: the ranks add up and the sum is exact."),
                "save_as": _save_as("merged"),
            }
        }

    def run(self, **inputs: Unpack[MergeInputs]) -> NodeOutput:
        from .host.lora_files import merged

        name, report = merged(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}
