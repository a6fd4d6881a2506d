"""LoomLoraInspect, -Resize, -Merge, -Convert, -Extract, -MergeBase: inspect, change and make LoRA files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode, NodeOutput, Widget
from .train import ANY
from .widgets import link, text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .host.base_files import ExtractInputs, MergeBaseInputs
    from .host.comfy_types import Clip, ModelPatcher
    from .host.lora_files import ConvertInputs, MergeInputs, ResizeInputs

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
                "model": link(
                    "MODEL",
                    "Counts how many modules of the file ComfyUI matches in this model, and lists its layers by the names that patterns of Loom Network find.",
                ),
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


class LoomLoraConvert(_ChangesWithItsFiles):
    """Converts a LoRA to another key format."""

    TITLE = "Loom LoRA Convert"
    SEARCH_ALIASES = ("lora", "convert lora", "diffusers lora", "kohya lora", "peft", "lora format")
    DESCRIPTION = "Writes a LoRA in the key format of other programs, or theirs in ComfyUI's. Fused projections are split or joined without changing the result; LoHa and LoKr become the LoRA of the same change."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = ("Name of the new file, for LoraLoader.", "What was split or fused, and the ranks.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "lora_name": _lora("LoRA file, as LoraLoader lists it, or the lora_name of another node."),
                "format": (
                    ["native", "diffusers", "kohya"],
                    {
                        "default": "native",
                        "tooltip": "Key format of the new file. native: what LoRA Loom writes and ComfyUI loads. diffusers: what load_lora_weights takes. kohya: sd-scripts'.",
                    },
                ),
                "dtype": (DTYPES, {"default": "auto", "tooltip": "Dtype of the new file. auto keeps that of the source file."}),
                "save_as": _save_as("converted"),
            },
            "optional": {
                "family": text("auto", "Model family of the LoRA, such as sdxl, for a file whose keys fit several; the error names them.", advanced=True),
            },
        }  # fmt: skip

    def run(self, **inputs: Unpack[ConvertInputs]) -> NodeOutput:
        from .host.lora_files import converted

        name, report = converted(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}


def _base(tooltip: str) -> Widget:
    from .host.sweep.sampler_names import base_names

    return base_names(), {"tooltip": tooltip}


class _ReadsBases(LoomNode):
    """A node that runs again when a checkpoint or LoRA that it reads has changed."""

    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **inputs: object) -> str:
        from .host.base_files import base_stamps

        return base_stamps(inputs)


class LoomLoraExtract(_ReadsBases):
    """Extracts a LoRA from the difference of two checkpoints."""

    TITLE = "Loom LoRA Extract"
    SEARCH_ALIASES = ("lora", "extract lora", "checkpoint difference", "svd")
    DESCRIPTION = "Approximates the difference of a fine-tuned checkpoint from its base by a LoRA, and reports how much of it the LoRA holds. Both are read tensor by tensor; nothing is loaded."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = _RESULT_NAMES
    OUTPUT_TOOLTIPS = ("Name of the new file, for LoraLoader.", "Ranks, and the share of the difference that was kept.")

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "base": _base("The base model."),
                "tuned": _base("A fine-tuned checkpoint of it, in the same layout."),
                **_keep(0, 32, "Largest rank of a module. 0: no limit, with one of the sv_ methods."),
                "save_as": _save_as("extracted"),
            }
        }

    def run(self, **inputs: Unpack[ExtractInputs]) -> NodeOutput:
        from .host.base_files import extracted

        name, report = extracted(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}


class LoomLoraMergeBase(_ReadsBases):
    """Merges a LoRA into a checkpoint."""

    TITLE = "Loom LoRA Merge into Base"
    SEARCH_ALIASES = ("lora", "merge lora", "bake lora", "merge into checkpoint", "fuse lora")
    DESCRIPTION = "Writes a checkpoint with a LoRA merged in, as ComfyUI would apply it, tensor by tensor, and compares the file with the original. Nothing is loaded."
    RETURN_TYPES = _RESULTS
    RETURN_NAMES = ("base_name", "report")
    OUTPUT_TOOLTIPS = (
        "Name of the new file, for the loader of its folder (checkpoints or diffusion_models).",
        "How many tensors were changed, and what rounding costs.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "base": _base("The base model."),
                "lora_name": _lora("LoRA file, as LoraLoader lists it, or the lora_name of another node."),
                "strength": (
                    "FLOAT",
                    {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.05, "tooltip": "Strength at which the LoRA is merged."},
                ),
                "skip_missing": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Leave out modules that the base model does not have, such as text encoders. Off: they are an error."},
                ),
                "save_as": text(
                    "merged",
                    "Name of the new file, without extension, in the sub-folder lora_loom beside the base model. A file of this name is replaced only if this node wrote it.",
                ),
            }
        }  # fmt: skip

    def run(self, **inputs: Unpack[MergeBaseInputs]) -> NodeOutput:
        from .host.base_files import merged_into_base

        name, report = merged_into_base(inputs)
        return {"ui": {"text": [report]}, "result": (name, report)}
