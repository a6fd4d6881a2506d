"""How an earlier run goes on: what "auto" stands for is what it began with, whatever this version takes for new ones, and with more
steps it begins again before the fall of its rate."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import nn

from ..config.network import WHOLE
from ..config.run import NetworkConfig, ObjectiveConfig, OptimizerConfig, TrainingConfig
from ..config.toml import WERE
from ..training.optim import averages_itself
from ..training.rate import Rate, auto_rate
from ..training.schedule import fall_begins, lr_factor, warmup_steps
from ..types import Record
from .checkpoint import Checkpoint, list_checkpoints
from .plan import RunPlan
from .record import recorded_tables
from .run_folder import RunFolder

SPREAD = "timestep_spread"
ASIDE = ".fallen"
"""Ending of the names of what is set aside. Nothing reads it again."""


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


def with_average(
    training: TrainingConfig, optimizer: OptimizerConfig, network: NetworkConfig, folder: RunFolder
) -> TrainingConfig:
    """The settings that say whether weights are averaged: as the run does it; a new one unless its optimizer does or all weights train."""
    if training.ema_decay != "auto":
        return training
    if begun := _begun(folder):
        return replace(training, ema_decay=begun.get("training", {}).get("ema_decay", WERE["training"]["ema_decay"]))
    return replace(training, ema_decay=0.0) if network.kind == WHOLE or averages_itself(optimizer) else training


def with_length(training: TrainingConfig, folder: RunFolder) -> TrainingConfig:
    """The settings with the number of steps that the run has, where none is asked for."""
    steps = 0 if training.steps or training.epochs else _begun(folder).get("training", {}).get("steps", 0)
    return replace(training, steps=steps) if steps else training


def _begun(folder: RunFolder) -> Record:
    """The tables of a run that has kept something; {} for one that begins."""
    return recorded_tables(folder) if folder.exists() and not folder.has_kept_nothing() else {}


def go_back(folder: RunFolder, plan: RunPlan) -> str:
    """Set aside what the run has done at rates that it would not have had with its present length; returns a line that says so, or "".

    Only where an earlier checkpoint goes before all of that: otherwise the run goes on from its last one, as it is. Warm-ups are not
    compared, for one that is a share of the steps was shorter. The steps' rates are those of metrics.jsonl.
    """
    last = folder.last_checkpoint()
    if last is None or last.step >= plan.training.steps or fall_begins(plan.training.steps, plan.schedule) is None:
        return ""
    first = _first_other_step(folder.read_metrics(), plan)
    kept = [one for one in list_checkpoints(folder.checkpoints) if one.step < first]
    if first > last.step or not kept:
        return ""
    for checkpoint in list_checkpoints(folder.checkpoints):
        if checkpoint.step > kept[-1].step:
            _set_aside(folder, checkpoint)
    return (
        f"the rate fell from step {first} on, which it does not in a run of {plan.training.steps} steps: it goes on from step {kept[-1].step}; "
        f"later checkpoints and LoRA files are set aside (*{ASIDE})"
    )


def _first_other_step(lines: list[Record], plan: RunPlan) -> float:
    """The first step after the warm-up that was taken at another rate than this plan has there; inf for none."""
    total, schedule = plan.training.steps, plan.schedule
    begins = warmup_steps(schedule, total)
    rates = {int(line["step"]): float(line["learning_rate"]) for line in lines if "learning_rate" in line}
    return min(
        (
            step
            for step, rate in rates.items()
            if begins < step <= total and rate != plan.optimizer.rate * lr_factor(step - 1, total, schedule)
        ),
        default=float("inf"),
    )


def _set_aside(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Rename a checkpoint and its LoRA file."""
    shutil.rmtree(aside := checkpoint.folder.with_name(checkpoint.folder.name + ASIDE), ignore_errors=True)
    checkpoint.folder.rename(aside)
    lora = folder.lora_file(checkpoint.step)
    if lora.is_file():
        lora.replace(lora.with_name(lora.name + ASIDE))
