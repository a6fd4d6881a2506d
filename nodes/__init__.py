"""The nodes: one file per subject. A node class lists its inputs and calls `nodes/host`; nothing heavy is imported until it runs."""

from .base_lora import LoomBaseLora
from .dataset import LoomCache, LoomDataset, LoomDatasetFile, LoomDatasetImages
from .demo import LoomDemoModel
from .image_strip import LoomImageStrip
from .importing import LoomImportSettings
from .lora_tools import (
    LoomLoraConvert,
    LoomLoraExtract,
    LoomLoraInspect,
    LoomLoraMerge,
    LoomLoraMergeBase,
    LoomLoraResize,
)
from .node import LoomNode
from .objective import LoomObjective
from .settings import LoomMemory, LoomNetwork, LoomOptimizer, LoomValidation
from .sweep import LoomAPG, LoomCheckpoints, LoomGuidance, LoomScore, LoomStrip, LoomSweep
from .train import LoomRun, LoomTrain, LoomWait

NODES: tuple[type[LoomNode], ...] = (
    LoomDemoModel,
    LoomDataset,
    LoomDatasetImages,
    LoomDatasetFile,
    LoomCache,
    LoomNetwork,
    LoomOptimizer,
    LoomObjective,
    LoomMemory,
    LoomValidation,
    LoomBaseLora,
    LoomImportSettings,
    LoomTrain,
    LoomWait,
    LoomRun,
    LoomCheckpoints,
    LoomGuidance,
    LoomSweep,
    LoomScore,
    LoomStrip,
    LoomAPG,
    LoomLoraInspect,
    LoomLoraResize,
    LoomLoraMerge,
    LoomLoraConvert,
    LoomLoraExtract,
    LoomLoraMergeBase,
    LoomImageStrip,
)

NODE_CLASS_MAPPINGS: dict[str, type[LoomNode]] = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.__name__: node.TITLE for node in NODES}
WEB_DIRECTORY = "./web"


def add_routes() -> None:
    """Serve the panel's routes, if there is a server (ComfyUI's own scripts import packs without one)."""
    from .host.page.routes import attach

    attach()
