"""LoRA Loom: train LoRAs inside ComfyUI's graph, and from a command line.

Inside ComfyUI this registers the nodes: in its V3 form where it has all that is needed, else in V1. Elsewhere importing it does
nothing, and costs nothing.
"""

import importlib.util

if importlib.util.find_spec("folder_paths") is not None:  # ComfyUI's own module: we are inside it
    from .nodes import WEB_DIRECTORY, add_routes, has_v3

    add_routes()
    if has_v3():
        from .nodes import comfy_entrypoint

        __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
    else:  # ComfyUI asks for this form first: it is exported only where the other is not
        from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

        __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
