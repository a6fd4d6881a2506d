"""The learning rate as a closed form of the step, so that resuming needs only the step number."""

import importlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from ..config.optimizer import ScheduleConfig
from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Place:
    """The position of a step in a run, in steps."""

    done: int
    """Finished steps since the end of the warm-up."""
    steps: int
    """All steps after the warm-up, 1 or more."""
    warmup: int
    """Steps of the warm-up."""


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


def rex(t: float, config: ScheduleConfig) -> float:
    """The factor is (1 - t) / (1/2 + (1 - t) / 2) (REX, arXiv 2107.04197)."""
    return (1 - t) / (1 - t / 2)


def warm_restarts(place: Place, config: ScheduleConfig) -> float:
    """Cosines one after another, each after a linear rise of its own, from a peak that is `cycle_decay` of the one before.

    Their lengths are `cycle_growth` times that of the one before, rounded to steps (arXiv 1608.03983; the warm-ups as in
    katsura-jp/pytorch-cosine-annealing-with-warmup, except that no step is taken at the lowest rate).
    """
    ends = list(accumulate(config.cycle_growth**n for n in range(config.cycles)))
    bounds = [0, *(round(place.steps * end / ends[-1]) for end in ends)]
    cycle = max(n for n in range(config.cycles) if bounds[n] <= place.done)
    length, at = bounds[cycle + 1] - bounds[cycle], place.done - bounds[cycle]
    rise = 0 if cycle == 0 and place.warmup else min(_counted(config.cycle_warmup, length), length)
    shape = (at + 1) / rise if at < rise else cosine((at - rise) / max(length - rise, 1), config)
    return float(config.cycle_decay**cycle * shape)


def inverse_sqrt(place: Place, config: ScheduleConfig) -> float:
    """The factor is 1 / sqrt(1 + n / T) after n steps, with T = `timescale`, else the warm-up, else 10000 (as transformers has it)."""
    return 1 / math.sqrt(1 + place.done / (config.timescale or place.warmup or 10_000))


def wsd(place: Place, config: ScheduleConfig) -> float:
    """The factor is 1, and falls along half a cosine in the last `decay` (warm-up, stable, decay: arXiv 2404.06395)."""
    fall = _fall(place.steps, config)
    return cosine(max(place.done - (place.steps - fall), 0) / fall, config)


def _fall(steps: int, config: ScheduleConfig) -> int:
    """Length of the fall of wsd, of so many steps after the warm-up."""
    return max(min(_counted(config.decay, steps), steps), 1)


def fall_begins(total: int, config: ScheduleConfig) -> int | None:
    """Finished steps at which wsd begins to fall: up to there a longer run is the same. None for every other schedule."""
    if config.kind != "wsd":
        return None
    warmup = warmup_steps(config, total)
    return min(warmup, total) + max(total - warmup, 1) - _fall(max(total - warmup, 1), config)


def sine(place: Place, config: ScheduleConfig) -> float:
    """Waves (1 + sin(2 pi cycles t)) / 2, which begin half-way and rise; never below 1 / steps, because a step at rate 0 is wasted."""
    wave = (1 + math.sin(2 * math.pi * config.cycles * place.done / place.steps)) / 2
    return max(wave, 1 / place.steps)


def of_class(place: Place, config: ScheduleConfig) -> float:
    """The factor of the class that `config.kind` names, at this step. Raises ConfigError if it cannot be used."""
    return class_factors(config.kind, json.dumps(config.options), place.steps)[place.done]


@lru_cache(maxsize=4)
def class_factors(path: str, options: str, steps: int) -> list[float]:
    """The factors of a schedule of torch's interface at all `steps` after the warm-up, which it was taken through once.

    So a resumed run needs no state of it. `options` are JSON. Raises ConfigError.
    """
    import torch

    module, _, name = path.rpartition(".")
    interface = torch.optim.lr_scheduler.LRScheduler
    given = {key: steps if value == "steps" else value for key, value in json.loads(options).items()}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    try:
        cls = getattr(importlib.import_module(module), name)
        if not (isinstance(cls, type) and issubclass(cls, interface)):
            raise TypeError(f"it is no {interface.__name__} of torch")
        schedule = cls(optimizer, **given)
        factors = []
        for _ in range(steps):
            factors.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
    except ImportError as error:
        raise ConfigError(f"schedule.kind = {path!r}: {error}; install its library, or choose another") from error
    except Exception as error:  # whatever a class from anywhere raises
        raise ConfigError(f"schedule.kind = {path!r} with schedule.options = {given!r}: {error}") from error
    odd = next((n for n, factor in enumerate(factors) if not (math.isfinite(factor) and factor >= 0)), None)
    if odd is not None:
        raise ConfigError(f"schedule.kind = {path!r} gives the factor {factors[odd]} after {odd} steps: use another")
    return factors


def _counted(length: float, steps: int) -> int:
    """A length in steps, given as a share of `steps` if it is below 1."""
    return round(length * steps) if length < 1 else round(length)


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Number of warm-up steps of a run of `total` steps."""
    return _counted(config.warmup, total)


def check_schedule(config: ScheduleConfig, total: int) -> None:
    """Raise ConfigError for a class that cannot be used, before anything is loaded."""
    lr_factor(total - 1, total, config)


def lr_factor(step: int, total: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate for the step that follows `step` finished ones (0 <= step < total).

    It rises by (step + 1) / warmup, then falls from 1 towards `min_lr_ratio`, which a further step would reach: no step is
    taken at a rate of zero.
    """
    place = Place(done=step - (warmup := warmup_steps(config, total)), steps=max(total - warmup, 1), warmup=warmup)
    if place.done < 0:
        return (step + 1) / warmup
    law = config.entry.load()
    shape = float(law(place, config) if config.entry.by_steps else law(min(place.done / place.steps, 1.0), config))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
