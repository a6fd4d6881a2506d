"""The learning rate of `learning_rate = "find"`: successive halving over rates round that of the rule.

Every rate begins with the same weights and sees the same images, noise and noise levels on the run's own schedule, so that
differences are the rate's (successive halving: arXiv 1502.07943). The better ones train twice as long; the run then
begins at its first step with the best, and is that of anybody who gives this number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FACTORS = (0.4, 1.0, 2.0)
"""Rates that are tried, as factors on the rule's."""
LEAD = 0.05
"""Share by which the loss of a rate above the rule's has to be lower: high rates lead in short trials, and less or not at the end of a run."""
SHARE = 0.09
"""Share of the run's steps that the search may cost, measurements counted as the steps that take as long."""
FEWEST, MOST = 12, 60
"""Steps that each rate is trained for at least, and at most, before the first comparison."""
IMAGES = 4
"""Images that a rate is measured on."""
STEP_PASSES = 3
"""A training step takes about as long as three forward passes."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A rate after some steps, and the validation loss there."""

    rate: float
    steps: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is tried: all rates for `steps` steps, the better ones for twice as many."""

    rates: tuple[float, ...]
    """In rising order; the second is the rule's."""
    steps: int
    measured: int
    """Forward passes of one measurement."""

    @property
    def kept(self) -> int:
        """How many rates are trained twice as long."""
        return -(-len(self.rates) // 2)

    @property
    def trained(self) -> int:
        """Training steps in all."""
        return self.steps * (len(self.rates) + self.kept)

    def text(self, total: int, per_step: int) -> str:
        """The cost in words, for a run of `total` steps that take `per_step` images each."""
        passes = self.measured * (len(self.rates) + self.kept)
        share = (self.trained + passes / (STEP_PASSES * per_step)) / total
        return (
            f"looking for a learning rate among {', '.join(f'{rate:g}' for rate in self.rates)}: {self.trained} steps and {passes} forward "
            f"passes, about {share:.0%} of the run"
        )


def make_search(usual: float, total: int, measured: int, per_step: int) -> Search:
    """The search of a run of `total` steps with `per_step` images each, round the rate that the rule gives; a measurement takes
    `measured` forward passes."""
    rates = tuple(float(f"{usual * factor:.2g}") for factor in FACTORS)
    trials = len(rates) + -(-len(rates) // 2)
    for_steps = SHARE * total - trials * measured / (STEP_PASSES * per_step)
    steps = min(max(math.floor(for_steps / trials), FEWEST), MOST, max(total // 2, 1))
    return Search(rates=rates, steps=steps, measured=measured)


def find_rate(
    search: Search, known: Sequence[Trial], train: Callable[[float, int], float], keep: Callable[[Trial], None]
) -> float:
    """The rate with the lowest loss after both rounds. `train(rate, steps)` returns the loss of a rate after so many steps in all.

    `known` are trials of an earlier, interrupted search, which are not made again; `keep` receives each new one.
    """
    made = {(one.rate, one.steps): one.loss for one in known}

    def loss_of(rate: float, steps: int) -> float:
        if (rate, steps) not in made:
            made[rate, steps] = train(rate, steps)
            keep(Trial(rate=rate, steps=steps, loss=made[rate, steps]))
        return made[rate, steps]

    usual = search.rates[1]

    def weighed(rate: float, steps: int) -> float:
        loss = _comparable(loss_of(rate, steps))
        return loss / (1 - LEAD) if rate > usual else loss

    def best_first(rates: Sequence[float], steps: int) -> list[float]:
        return sorted(rates, key=lambda rate: (weighed(rate, steps), rate))

    kept = best_first(search.rates, search.steps)[: search.kept]
    return best_first(kept, 2 * search.steps)[0]


def _comparable(loss: float) -> float:
    """A rate that has diverged is the worst."""
    return loss if math.isfinite(loss) else math.inf
