"""accelerate's YAML: how processes are started, DeepSpeed, and the dtype of the forward pass."""

from collections.abc import Mapping
from typing import Any

from ..config.network import WHOLE
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
    split(made, "deepspeed_config.zero_stage", "deepspeed_config.offload_param_device")
    if made.whole("num_processes", 1) > 1:
        made.notes.append(f"start {made.text('num_processes')} processes with torchrun --nproc_per_node")
    return made


def split(made: Translation, stage: str, offload: str) -> None:
    """Set how the base model is split or streamed, by the names of DeepSpeed's stage and of where its weights wait."""
    if made.settings.get("network.kind") == WHOLE:
        note = "a full fine-tune is not split here: every process holds the whole model"
        made.say("none", stage, offload, note=note)
        return
    if made.whole(stage) >= 3:
        made.put("memory.shard", True, stage, nearly="FSDP takes the place of DeepSpeed")
    made.say("needless", stage, note="what it splits is small for a LoRA")
    if made.text(offload, "none").lower() != "none" and "memory.shard" not in made.settings:
        nearly = "all blocks that do not fit memory.vram_gb are streamed, with the same result"
        made.put("memory.base", "stream", offload, nearly=nearly)
    made.say("needless", offload, note="the base model is split, or stays where it is")


def deepspeed(made: Translation, given: Any) -> None:
    """Set what a DeepSpeed configuration inside of another file says; one that is named by its path has to be looked at by hand."""
    if not made.has("deepspeed_config"):
        return
    zero = given.get("zero_optimization", {}) if isinstance(given, Mapping) else {}
    if isinstance(zero, Mapping) and int(zero.get("stage", 0)) >= 3 and made.settings.get("network.kind") != WHOLE:
        made.put("memory.shard", True, "deepspeed_config", nearly="FSDP takes the place of DeepSpeed")
    elif zero:
        made.say("needless", "deepspeed_config", note="what it splits is small for a LoRA")
    else:
        note = "there is no DeepSpeed: memory.shard = true splits the base over GPUs as its stage 3 does, memory.base = stream keeps it in RAM"
        made.say("none", "deepspeed_config", note=note)
