"""What a run is, whichever front end begins it: its settings, its name, its trigger, and digests of what its paths lead to."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..config.run import (
    MemoryConfig,
    NetworkConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainConfig,
    TrainingConfig,
    ValidationConfig,
)
from ..config.toml import fixed_settings, to_dict
from ..lora.base_lora import BaseLoraIdentity
from ..training.schedule import fall_begins
from ..types import Record

SECTIONS = ("network", "optimizer", "schedule", "objective", "training", "memory", "validation", "output")
"""The tables of the configuration that both front ends have."""

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "optimum-quanto", "numpy")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The command line and the graph both fill one; what run.json, the LoRA files and a session hold of a run comes from it."""

    name: str
    network: NetworkConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    memory: MemoryConfig
    validation: ValidationConfig
    output: OutputConfig
    trigger: str
    """Trigger words of the datasets, separated by commas, "" for none."""
    facts: Mapping[str, str]
    """Digests of what the settings name by path: "model" and "data", the encoders, and "init" of network.init_from."""
    base_loras: tuple[BaseLoraIdentity, ...] = ()
    """The frozen LoRAs that it is trained on, in their order."""
    own: Record
    """Tables that one front end alone has: base model, datasets, text and sweep of the command line, the graph's cache."""

    def config(self) -> Record:
        """All settings as run.json keeps them: the tables of a TOML file. A run of the graph lacks model.base and datasets."""
        return {"name": self.name, **self.own, **{name: to_dict(getattr(self, name)) for name in SECTIONS}}

    def fixed(self, processes: int = 1) -> Record:
        """What must stay equal for a run to be continued.

        Accumulation counts the forward passes of all processes: two processes with one each are one process with two.
        """
        below = {"base_loras": [one.fact() for one in self.base_loras]} if self.base_loras else {}
        fixed = fixed_settings(self.config(), {**self.facts, **below})
        fixed["training"]["gradient_accumulation_steps"] *= processes
        return fixed

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due: every so many steps, and before the rate falls at the end (wsd), where a longer run can begin."""
        return is_due(step, self.training.save_every) or step == fall_begins(self.training.steps, self.schedule)

    def measures_at(self, step: int) -> bool:
        """Whether the validation loss is measured."""
        return step == self.training.steps or is_due(step, self.validation.every or self.training.save_every)


def is_due(step: int, every: int) -> bool:
    """Whether something is due that is done every so many steps; never for 0."""
    return every > 0 and step % every == 0


def cache_folder(config: TrainConfig) -> Path:
    """The folder of cached latents and conditionings: `output.cache`, else `cache` in the output directory."""
    return Path(config.output.cache or Path(config.output.directory) / "cache").expanduser()


def environment(device: str, threads: int, processes: int = 1) -> Record:
    """What exact resuming depends on: device, thread count, number of processes, library versions."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "absent"
    return {
        "device": device,
        "threads": threads,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "libraries": versions,
        **({"processes": processes} if processes > 1 else {}),
    }
