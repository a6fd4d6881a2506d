"""The nodes: one file per subject, each a form and a call. Nothing heavy is imported until a node runs."""

from typing import Any

from .dataset import LoomCache, LoomDataset, LoomDatasetFile, LoomDatasetImages
from .demo import LoomDemoModel
from .lora_tools import LoomLoraInspect, LoomLoraMerge, LoomLoraResize
from .settings import LoomMemory, LoomNetwork, LoomObjective, LoomOptimizer, LoomValidation
from .sweep import LoomAPG, LoomCheckpoints, LoomGuidance, LoomScore, LoomStrip, LoomSweep
from .train import LoomRun, LoomTrain, LoomWait

TITLES: dict[type, str] = {
    LoomDemoModel: "Loom Demo Model",
    LoomDataset: "Loom Dataset (folder)",
    LoomDatasetImages: "Loom Dataset (images)",
    LoomDatasetFile: "Loom Dataset (file)",
    LoomCache: "Loom Cache",
    LoomNetwork: "Loom Network",
    LoomOptimizer: "Loom Optimizer",
    LoomObjective: "Loom Objective",
    LoomMemory: "Loom Memory",
    LoomValidation: "Loom Validation",
    LoomTrain: "Loom Train LoRA",
    LoomWait: "Loom Wait for Run",
    LoomRun: "Loom Run (from disk)",
    LoomCheckpoints: "Loom Checkpoints",
    LoomGuidance: "Loom Guidance",
    LoomSweep: "Loom Sweep",
    LoomScore: "Loom Score",
    LoomStrip: "Loom Strip",
    LoomAPG: "Loom APG",
    LoomLoraInspect: "Loom LoRA Inspect",
    LoomLoraResize: "Loom LoRA Resize",
    LoomLoraMerge: "Loom LoRA Merge",
}

NODE_CLASS_MAPPINGS: dict[str, Any] = {cls.__name__: cls for cls in TITLES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {cls.__name__: title for cls, title in TITLES.items()}
WEB_DIRECTORY = "./web"


def add_routes() -> None:
    """Serve the panel's routes, if there is a server (ComfyUI's own scripts import packs without one)."""
    from .host.runs.routes import attach

    attach()
