"""The nodes: one file per subject. A node class lists its inputs and calls `nodes/host`; nothing heavy is imported until it runs."""

import sys
from typing import Any

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


def has_v3() -> bool:
    """Whether this ComfyUI's V3 form can say all that the V1 form says: search aliases came late (v0.3.64 and v0.8 lack them).

    Looks at what ComfyUI has imported by the time it imports packs. It imports nothing and raises nothing.
    """
    schema = getattr(getattr(sys.modules.get("comfy_api.latest"), "io", None), "Schema", None)
    return "search_aliases" in getattr(schema, "__dataclass_fields__", ())


async def comfy_entrypoint() -> Any:
    """ComfyUI's way to V3 nodes: returns a ComfyExtension."""
    from .host.v3 import extension

    return extension(NODES)


def add_routes() -> None:
    """Serve the panel's routes, if there is a server (ComfyUI's own scripts import packs without one)."""
    from .host.page.routes import attach

    attach()
