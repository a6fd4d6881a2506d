"""LoomImportSettings: the settings of another trainer's configuration, for Loom Train LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .node import InputTypes, LoomNode
from .sockets.names import MEMORY, NETWORK, OBJECTIVE, OPTIMIZER
from .widgets import text

if TYPE_CHECKING:
    from .sockets.values import MemoryValue, NetworkValue, ObjectiveValue, OptimizerValue


class LoomImportSettings(LoomNode):
    """Settings out of another trainer's file."""

    TITLE = "Loom Import Settings"
    SEARCH_ALIASES = ("import", "preset", "kohya", "simpletuner", "onetrainer", "ai-toolkit", "musubi", "config")
    CATEGORY = f"{LoomNode.CATEGORY}/settings"
    DESCRIPTION = (
        "The settings of a configuration of SimpleTuner, sd-scripts, LoRA_Easy_Training_Scripts, musubi-tuner, ai-toolkit, OneTrainer or "
        "diffusion-pipe, or of a TOML file of lora-loom import. The report says of each option what became of it. Loom Dataset (file) takes the datasets of the same file."
    )
    RETURN_TYPES = (NETWORK, OPTIMIZER, OBJECTIVE, MEMORY, "INT", "FLOAT", "INT", "FLOAT", "INT", "INT", "STRING")
    RETURN_NAMES = (
        "network", "optimizer", "objective", "memory", "rank", "learning_rate", "steps", "epochs", "batch_size", "save_every", "report",
    )  # fmt: skip
    OUTPUT_TOOLTIPS = (
        "Connect to Loom Train LoRA.",
        "Connect to Loom Train LoRA.",
        "Connect to Loom Train LoRA.",
        "Connect to Loom Train LoRA.",
        "Rank of the adapter.",
        "Peak learning rate.",
        "Training steps; what Loom Train LoRA has by default where the file counts epochs.",
        "Length in epochs; 0 where the file counts steps.",
        "Images per forward pass.",
        "Steps between checkpoints.",
        "What was taken exactly, with a difference, is not needed or has no counterpart.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        return {
            "required": {
                "path": text(
                    "",
                    "The file: a configuration (.json, .toml, .yaml, .env) or a script with the command that trains, relative to ComfyUI's input directory, or an absolute path.",
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, path: str | None = None) -> str:
        """The content of the file: a text that changes when it does."""
        from .host.importing import content

        return content(path or "")

    def run(
        self, path: str
    ) -> tuple[NetworkValue, OptimizerValue, ObjectiveValue, MemoryValue, int, float, int, float, int, int, str]:
        from .host.importing import settings

        return settings(path)
