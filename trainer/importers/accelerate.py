"""accelerate's YAML: how processes are started, DeepSpeed, and the dtype of the forward pass."""

from collections.abc import Mapping
from typing import Any

from ..data.sets.checks import Surroundings
from ..types import Record
from . import values
from .translation import Translation


def is_config(data: Any) -> bool:
    """Whether a file is a configuration of accelerate."""
    return isinstance(data, Mapping) and "distributed_type" in data and "num_processes" in data


def translate(data: Mapping[str, Any], around: Surroundings) -> Translation:
    """What of it concerns a run; nothing around it is needed."""
    options: Record = {}
    for name, value in data.items():
        deep = isinstance(value, Mapping) and name == "deepspeed_config"
        options |= {f"{name}.{inner}": of for inner, of in value.items()} if deep else {name: value}
    made = Translation("accelerate", ("config",), options)
    if made.has("mixed_precision"):
        made.put("training.precision", values.dtype("mixed_precision", made.get("mixed_precision")), "mixed_precision")
    if made.whole("deepspeed_config.zero_stage") >= 3:
        made.put("memory.shard", True, "deepspeed_config.zero_stage", nearly="FSDP takes the place of DeepSpeed")
    made.say("needless", "deepspeed_config.zero_stage", note="what it splits is small for a LoRA")
    if made.text("deepspeed_config.offload_param_device", "none") != "none" and "memory.shard" not in made.settings:
        nearly = "all blocks that do not fit memory.vram_gb are streamed, with the same result"
        made.put("memory.base", "stream", "deepspeed_config.offload_param_device", nearly=nearly)
    made.say("needless", "deepspeed_config.offload_param_device", note="the base model is split, or stays where it is")
    if made.whole("num_processes", 1) > 1:
        made.notes.append(f"start {made.text('num_processes')} processes with torchrun --nproc_per_node")
    return made
