"""What in the settings of optimizer and schedule works against itself. It is said when a run starts, and stops nothing."""

import math

from ..config.run import OptimizerConfig, ScheduleConfig
from .schedule import warmup_steps

LONG_WARMUP = 0.5
WHOLE_SHARE = 0.03
"""Rates of full fine-tunes as a share of those of adapters."""


def advice(
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    steps: int,
    *,
    whole: bool = False,
    usual: tuple[float, float] | None = None,
) -> list[str]:
    """One sentence for each setting that keeps a run of this many steps from learning as much as it could. `whole`: a full fine-tune.

    `usual` are the lowest and the highest rate of the network that is trained; None: those that the optimizer is used with anywhere.
    """
    notes = []
    if optimizer.entry.finds_rate and schedule.kind != "constant":
        notes.append(
            f"schedule.kind = {schedule.kind!r} falls while {optimizer.name} is still looking for its rate, and the run learns much less "
            "(docs/benchmarks.md): use constant"
        )
    warmup = warmup_steps(schedule, steps)
    if warmup > steps:
        notes.append(
            f"schedule.warmup = {schedule.warmup:g} is longer than the run of {steps} steps, which ends at {steps / warmup:.0%} of its "
            "learning rate: lower it, or write a share of the steps (0.05)"
        )
    elif warmup >= LONG_WARMUP * steps:
        notes.append(f"the warm-up takes {warmup} of {steps} steps: 5 % are usual; lower schedule.warmup")
    low, high = usual or optimizer.entry.rates or (0.0, math.inf)
    if whole and not optimizer.entry.finds_rate:
        low, high = low * WHOLE_SHARE, high * WHOLE_SHARE
    if not low <= optimizer.rate <= high:
        place = " on a network of this width with this alpha" if usual else ""
        notes.append(
            f"optimizer.learning_rate = {optimizer.rate:g} is outside of what {optimizer.name} is used with{place} ({low:.2g} to {high:.2g})"
        )
    return notes
