"""The alpha of LoRA files that diffusers saved: it stands in their metadata alone, as PEFT's settings.

diffusers scales by it when it loads such a file. ComfyUI does not read it, and scales by 1.
"""

import json
import math
import re
from collections.abc import Mapping

KEY = "lora_adapter_metadata"
"""The entry of the metadata: a JSON object of PEFT's settings, each behind the name of a network and a dot."""


def stated_alpha(metadata: Mapping[str, str], module: str, rank: int) -> float | None:
    """The alpha of a module of this rank for which alpha / rank is the scale; None where the metadata states none.

    PEFT's `alpha_pattern` and `rank_pattern` are {pattern of the end of a path: value}; rsLoRA divides by sqrt(rank).
    """
    settings = _settings(metadata, module)
    stated = settings.get("lora_alpha") if settings else None
    if settings is None or not isinstance(stated, int | float):
        return None
    patterns, alpha = settings.get("alpha_pattern"), float(stated)
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        if isinstance(value, int | float) and _matches(pattern, module):
            alpha = float(value)
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _settings(metadata: Mapping[str, str], module: str) -> dict[str, object] | None:
    """The settings of the network that a module belongs to, without its name."""
    try:
        every = json.loads(metadata.get(KEY, ""))
    except ValueError:
        return None
    if not isinstance(every, dict):
        return None
    network = module.split(".", 1)[0]
    mine = {key.removeprefix(f"{network}."): value for key, value in every.items() if key.startswith(f"{network}.")}
    return mine or every


def _matches(pattern: str, module: str) -> bool:
    try:
        return re.search(rf"(^|\.){pattern}$", module) is not None
    except re.error:
        return False
