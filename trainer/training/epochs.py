"""Lengths in epochs as steps, which everything else counts in."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from ..config.run import TrainingConfig


def in_steps(training: TrainingConfig, batches: int, processes: int, log: Callable[[str], None]) -> TrainingConfig:
    """`epochs` and `save_every_epochs` as `steps` and `save_every`, each logged; they are as they were where no epochs are set.

    `batches` are those of an epoch. A step takes `gradient_accumulation_steps` of them in each process, so that an epoch may
    end within a step: a run then takes that step, and checkpoints are saved at the nearest one.
    """
    per_step = training.gradient_accumulation_steps * processes
    if training.epochs:
        training = replace(training, steps=ceil(training.epochs * batches / per_step))
        log(f"training.epochs = {training.epochs:g}: {training.steps} steps")
    if training.save_every_epochs:
        training = replace(training, save_every=max(round(training.save_every_epochs * batches / per_step), 1))
        log(
            f"training.save_every_epochs = {training.save_every_epochs:g}: a checkpoint every {training.save_every} steps"
        )
    return training
