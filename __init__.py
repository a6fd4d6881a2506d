"""LoRA Loom: train LoRAs inside ComfyUI's graph, and from a command line.

Inside ComfyUI this registers the nodes. Elsewhere importing it does nothing, and costs nothing.
"""

import importlib.util

if importlib.util.find_spec("folder_paths") is not None:  # ComfyUI's own module: we are inside it
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY, add_routes

    add_routes()
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
