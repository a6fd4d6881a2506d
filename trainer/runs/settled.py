"""What "auto" stands for where it depends on the run: an earlier run goes on as it began, whatever this version takes for new ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import nn

from ..config.run import NetworkConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig
from ..config.toml import WERE
from ..training.rate import Rate, auto_rate
from ..types import Record
from .record import recorded_tables
from .run_folder import RunFolder

SPREAD = "timestep_spread"


def with_rate(
    optimizer: OptimizerConfig,
    network: NetworkConfig,
    folder: RunFolder,
    module: nn.Module,
    log: Callable[[str], None],
) -> OptimizerConfig:
    """The optimizer with a number for its learning rate: that of the run, for a new one what the rule gives."""
    if optimizer.learning_rate != "auto":
        return optimizer
    recorded = _begun(folder).get("optimizer", {}).get("learning_rate")
    begun = isinstance(recorded, float | int) and recorded
    rate = Rate(value=recorded, origin="as this run began") if begun else auto_rate(module, network, optimizer)
    log(f"learning rate: {rate.value:g} (auto, {rate.origin})")
    return replace(optimizer, learning_rate=rate.value)


def with_spread(objective: ObjectiveConfig, folder: RunFolder) -> ObjectiveConfig:
    """The objective that says how noise levels are drawn: as the run does it, for a new one evenly."""
    if objective.timestep_spread != "auto":
        return objective
    begun = _begun(folder)
    spread: Literal["even", "independent"] = "even"
    if begun:
        spread = begun.get("objective", {}).get(SPREAD, WERE["objective"][SPREAD])
    return replace(objective, timestep_spread=spread)


def with_guided_scale(objective: ObjectiveConfig, folder: RunFolder, usual: float) -> ObjectiveConfig:
    """The objective with a number for the scale of its guided loss: that of the run, for a new one the usual one of the model."""
    if objective.guided_loss == "off" or objective.guided_scale != "auto":
        return objective
    recorded = _begun(folder).get("objective", {}).get("guided_scale", "auto")
    return replace(objective, guided_scale=usual if recorded == "auto" else recorded)


def with_length(training: TrainingConfig, folder: RunFolder) -> TrainingConfig:
    """The settings with the number of steps that the run has, where none is asked for."""
    steps = 0 if training.steps or training.epochs else _begun(folder).get("training", {}).get("steps", 0)
    return replace(training, steps=steps) if steps else training


def _begun(folder: RunFolder) -> Record:
    """The tables of a run that has kept something; {} for one that begins."""
    return recorded_tables(folder) if folder.exists() and not folder.has_kept_nothing() else {}
