"""Which of several candidates is best, with confidence intervals: a paired bootstrap over common measurements.

K candidates, U units (held-out images, or cells of the same prompt and seed), R resamples. A unit is measured for every
candidate, so that an easy image is easy for all of them and cancels in the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..data.intervals import RESAMPLES, interval
from ..types import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_UNITS = 5
"""With fewer units than this no difference is called clear: four units agree by chance once in eight times."""


@dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """The place of a candidate in the ranking."""

    name: str
    mean: float
    low: float
    high: float
    """Confidence interval of the mean at LEVEL."""
    rank_low: int
    rank_high: int
    """Ranks (1 is best) in the middle 90 % of the resamples."""
    share_best: float
    """Share of resamples in which it is the best."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates by their means, and how far the first one leads."""

    places: tuple[RankedCandidate, ...]
    """Best mean first."""
    leads: dict[str, tuple[float, float, float]]
    """{another candidate: (mean lead of the first one over it, low, high)}, positive where the first one is better."""
    units: int

    @property
    def first(self) -> RankedCandidate:
        """The candidate with the best mean."""
        return self.places[0]

    @property
    def tied(self) -> tuple[str, ...]:
        """Candidates that the first one is not clearly better than, best first."""
        if self.units < MIN_UNITS:
            return tuple(place.name for place in self.places[1:])
        return tuple(place.name for place in self.places[1:] if not self.leads[place.name][1] > 0)

    @property
    def is_clear(self) -> bool:
        """Whether the first candidate is clearly better than every other one."""
        return len(self.places) > 1 and not self.tied


def rank(
    names: Sequence[str], values_KU: Sequence[Sequence[float]], *, lower_is_better: bool, seed: int = 0
) -> Ranking:
    """Order candidates by their means. Raises ValueError unless every candidate has a value for every unit."""
    values = np.asarray(values_KU, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != len(names) or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{len(names)} candidates need one row of finite numbers each, got an array {values.shape}")
    units = values.shape[1]
    counts_RU = np.random.default_rng(seed).multinomial(units, [1 / units] * units, size=RESAMPLES)
    means_RK = counts_RU @ values.T / units
    sign = 1.0 if lower_is_better else -1.0
    order = sorted(range(len(names)), key=lambda k: sign * values[k].mean())
    ranks_RK = (sign * means_RK).argsort(axis=1).argsort(axis=1) + 1
    best = order[0]
    return Ranking(
        places=tuple(_place(names[k], values[k], means_RK[:, k], ranks_RK[:, k]) for k in order),
        leads={
            names[k]: _lead(sign * (values[k] - values[best]), sign * (means_RK[:, k] - means_RK[:, best]))
            for k in order[1:]
        },
        units=units,
    )


def _place(name: str, values_U: Array, means_R: Array, ranks_R: "NDArray[np.int64]") -> RankedCandidate:
    low, high = interval(means_R, len(values_U))
    rank_low, rank_high = np.quantile(ranks_R, [0.05, 0.95], method="nearest")
    return RankedCandidate(
        name=name,
        mean=float(values_U.mean()),
        low=low,
        high=high,
        rank_low=int(rank_low),
        rank_high=int(rank_high),
        share_best=float((ranks_R == 1).mean()),
    )


def _lead(differences_U: Array, means_R: Array) -> tuple[float, float, float]:
    low, high = interval(means_R, len(differences_U))
    return float(differences_U.mean()), low, high
