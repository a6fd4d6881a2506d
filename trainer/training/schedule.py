"""Learning-rate laws as closed forms of the step, so that resuming needs only the step number."""

import math
from collections.abc import Callable

from ..config.run import ScheduleConfig


def _linear(t: float, config: ScheduleConfig) -> float:
    return 1 - t


def _cosine(t: float, config: ScheduleConfig) -> float:
    return (1 + math.cos(math.pi * t)) / 2


def _restarts(t: float, config: ScheduleConfig) -> float:
    """`cycles` cosines one after another; cycles = 4 means three restarts."""
    return _cosine(t * config.cycles % 1.0, config)


def _polynomial(t: float, config: ScheduleConfig) -> float:
    return float((1 - t) ** config.power)


LAWS: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": lambda t, config: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "restarts": _restarts,
    "polynomial": _polynomial,
}


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)


def lr_factor(step: int, total: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate for the step that follows `step` finished ones (0 <= step < total).

    Rises by (step + 1) / warmup, then falls from 1 towards `floor`, which a further step would reach: no step is
    taken at a rate of zero.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(total - warmup, 1)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * LAWS[config.kind](min(t, 1.0), config)
