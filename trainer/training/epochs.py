"""Lengths in epochs, or by the number of images, as steps, which everything else counts in."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from ..config.run import PASSES, TrainingConfig

USES = 100
"""How often an image is used in a run whose length follows from the number of images."""


def in_steps(
    training: TrainingConfig,
    batches_in: Callable[[float], float],
    images: int,
    processes: int,
    log: Callable[[str], None],
) -> TrainingConfig:
    """`epochs` and `save_every_epochs` as `steps` and `save_every`, each logged; they are as they were where no epochs are set.
    Without a number of steps either, `usual_steps` says it.

    `batches_in` gives the number of batches of the first epochs, `images` are those that are trained. A step takes `gradient_accumulation_steps` of them in each process, so that an epoch may
    end within a step: a run then takes that step, and checkpoints are saved at the nearest one.
    """
    per_step = training.gradient_accumulation_steps * processes
    if training.epochs:
        training = replace(training, steps=ceil(batches_in(training.epochs) / per_step))
        log(f"training.epochs = {training.epochs:g}: {training.steps} steps")
    elif not training.steps:
        training = replace(training, steps=usual_steps(training, images, processes))
        log(f"training.steps: {training.steps}, as usual for a {training.goal} with {images} images at this batch size")
    if training.save_every_epochs:
        training = replace(training, save_every=max(round(batches_in(training.save_every_epochs) / per_step), 1))
        log(
            f"training.save_every_epochs = {training.save_every_epochs:g}: a checkpoint every {training.save_every} steps"
        )
    return training


def usual_steps(training: TrainingConfig, images: int, processes: int) -> int:
    """How many steps use each image about `USES` times, within what is usual for the goal (`PASSES`, images in all)."""
    least, most = PASSES[training.goal]
    per_step = training.batch_size * training.gradient_accumulation_steps * processes
    return ceil(min(max(USES * images, least), most) / per_step)
