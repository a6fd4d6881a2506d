"""The learning rate as a closed form of the step, so that resuming needs only the step number."""

import math

from ..choices import LR_SCHEDULES
from ..config.run import ScheduleConfig


def constant(t: float, config: ScheduleConfig) -> float:
    """The factor is 1 at every share `t` of the steps."""
    return 1.0


def linear(t: float, config: ScheduleConfig) -> float:
    """The factor is 1 - t."""
    return 1 - t


def cosine(t: float, config: ScheduleConfig) -> float:
    """Half a cosine: (1 + cos(pi t)) / 2 (arXiv 1608.03983 without restarts)."""
    return (1 + math.cos(math.pi * t)) / 2


def restarts(t: float, config: ScheduleConfig) -> float:
    """The factor falls along `config.cycles` cosines, one after another (arXiv 1608.03983); 4 cycles mean three restarts."""
    return cosine(t * config.cycles % 1.0, config)


def polynomial(t: float, config: ScheduleConfig) -> float:
    """The factor is (1 - t) ** config.power."""
    return float((1 - t) ** config.power)


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Number of warm-up steps of a run of `total` steps."""
    return round(config.warmup * total) if config.warmup < 1 else round(config.warmup)


def lr_factor(step: int, total: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate for the step that follows `step` finished ones (0 <= step < total).

    It rises by (step + 1) / warmup, then falls from 1 towards `min_lr_ratio`, which a further step would reach: no step is
    taken at a rate of zero.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    t = (step - warmup) / max(total - warmup, 1)
    shape = float(LR_SCHEDULES[config.kind].load()(min(t, 1.0), config))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
