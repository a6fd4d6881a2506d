"""Confidence intervals of means by the bootstrap. U units, R resamples."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ..types import Array

RESAMPLES = 2000
LEVEL = 0.95


def interval(means_R: Array, units: int) -> tuple[float, float]:
    """Expanded percentile interval at LEVEL: plain percentiles are too narrow for few units.

    Hesterberg, "What Teachers Should Know about the Bootstrap" (arXiv 1411.5279), 5.3.3: take the percentiles at
    Phi(-sqrt(n / (n - 1)) t) with t the quantile of Student's law with n - 1 degrees of freedom.
    """
    if units < 2:
        return -math.inf, math.inf
    tail = NormalDist().cdf(-math.sqrt(units / (units - 1)) * student_quantile(0.5 + LEVEL / 2, units - 1))
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values_U: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The interval of the mean of U values at LEVEL, by `interval` over resamples."""
    values, units = np.asarray(values_U, dtype=np.float64), len(values_U)
    counts_RU = np.random.default_rng(seed).multinomial(units, [1 / units] * units, size=RESAMPLES)
    return interval(counts_RU @ values / units, units)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t by the Cornish-Fisher series (Abramowitz & Stegun 26.7.5); 1 % off from 3 degrees on."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
