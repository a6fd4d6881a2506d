"""The order of training: which examples a batch has, as a function of its position alone.

An epoch uses every example `repeats` times, or a share of these uses where its set has a probability. Examples with the same
bucket and the same sizes of reference images are shuffled and cut into batches; a last, smaller batch is kept. Then the
batches of all buckets are shuffled. Where sets join or leave in the course of a run, that begins a new epoch.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from math import ceil
from typing import NamedTuple

from ..errors import ConfigError
from ..seeding import permutation
from ..types import ALWAYS, Example, Size
from .cache.keys import reference_geometries, views


class Draw(NamedTuple):
    """One use of an example: which example, in which epoch, and which of its repeats."""

    number: int
    """Index of the example."""
    epoch: int
    turn: int
    """Index of the repeat within the epoch, from 0."""


@dataclass(frozen=True)
class Plan:
    """The order of training with the same sets throughout: a function from the position to the draws of a batch."""

    buckets: tuple[tuple[int, ...], ...]
    """Indices of the examples per bucket, each repeated as often as it is used per epoch; equal indices are adjacent."""
    batch_size: int
    seed: int
    per_step: int = 1
    """Batches of an optimizer step, over all processes."""
    shares: tuple[tuple[float, ...], ...] = ()
    """The share of its uses that each entry of `buckets` belongs to; empty: all of them take place."""

    @property
    def per_epoch(self) -> int:
        """Number of batches per epoch, the same in every epoch."""
        return sum(-(-used // self.batch_size) for used in map(self._used, range(len(self.buckets))))

    def _used(self, bucket: int) -> int:
        shares = self.shares[bucket] if self.shares else ()
        uses = Counter(shares) if shares else {1.0: len(self.buckets[bucket])}
        return sum(drawn(count, share) for share, count in uses.items())

    def at(self, position: int) -> tuple[Draw, ...]:
        """The draws of the batch at a position."""
        return self.batch(position // self.per_epoch, position % self.per_epoch)

    def batch(self, epoch: int, number: int) -> tuple[Draw, ...]:
        """The draws of a batch of an epoch."""
        return _epoch(self, epoch)[number]

    def batches_in(self, epochs: float) -> float:
        """Number of batches of the first epochs."""
        return epochs * self.per_epoch

    def epochs_in(self, batches: float) -> float:
        """How many epochs the first batches are; undoes `batches_in`."""
        return batches / self.per_epoch


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the sets stay the same."""

    position: int
    """Its first position."""
    epoch: int
    """Its first epoch, counted over the whole run."""
    plan: Plan


@dataclass(frozen=True)
class Phases:
    """The order of training with sets that join or leave; used as a `Plan` is."""

    phases: tuple[Phase, ...]

    @property
    def seed(self) -> int:
        return self.phases[0].plan.seed

    @property
    def per_step(self) -> int:
        return self.phases[0].plan.per_step

    @property
    def per_epoch(self) -> int:
        """Number of batches of the shortest epoch."""
        return min(phase.plan.per_epoch for phase in self.phases)

    def at(self, position: int) -> tuple[Draw, ...]:
        """The draws of the batch at a position."""
        phase = self.phases[bisect_right([one.position for one in self.phases], position) - 1]
        epochs, number = divmod(position - phase.position, phase.plan.per_epoch)
        return phase.plan.batch(phase.epoch + epochs, number)

    def batches_in(self, epochs: float) -> float:
        """Number of batches of the first epochs; an epoch that a set cuts short counts as one."""
        phase = [one for one in self.phases if one.epoch < epochs or not one.epoch][-1]
        return phase.position + (epochs - phase.epoch) * phase.plan.per_epoch

    def epochs_in(self, batches: float) -> float:
        """How many epochs the first batches are; undoes `batches_in`."""
        phase = self.phases[max(bisect_right([one.position for one in self.phases], batches) - 1, 0)]
        return phase.epoch + (batches - phase.position) / phase.plan.per_epoch


AnyPlan = Plan | Phases


def drawn(uses: int, share: float) -> int:
    """How many of the uses of a bucket's images take place in an epoch: their share, at least one."""
    return uses if share >= 1 else max(1, round(uses * share))


@lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> list[tuple[Draw, ...]]:
    """The batches of an epoch, in order."""
    batches = []
    for number, bucket in enumerate(plan.buckets):
        draws = [Draw(example, epoch, turn) for example, group in groupby(bucket) for turn, _ in enumerate(group)]
        if plan.shares:
            draws = _some(draws, plan.shares[number], plan.seed, epoch, number)
        order = [draws[i] for i in permutation(len(draws), plan.seed, "bucket", epoch, number)]
        batches += [tuple(order[i : i + plan.batch_size]) for i in range(0, len(order), plan.batch_size)]
    return [batches[i] for i in permutation(len(batches), plan.seed, "epoch", epoch)]


def _some(draws: Sequence[Draw], shares: Sequence[float], seed: int, epoch: int, bucket: int) -> list[Draw]:
    """The draws of a bucket that take place in an epoch, of each share others in each epoch."""
    places: dict[float, list[int]] = defaultdict(list)
    for place, share in enumerate(shares):
        places[share].append(place)
    chosen: list[int] = []
    for share, among in sorted(places.items()):
        order = permutation(len(among), seed, "probability", epoch, bucket, str(share))
        chosen += [among[i] for i in order[: drawn(len(among), share)]]
    return [draws[place] for place in sorted(chosen)]


def make_plan(examples: Sequence[Example], batch_size: int, seed: int, per_step: int = 1) -> AnyPlan:
    """Group the examples by size into a plan. `per_step` is the number of batches of a step, over all processes.

    Raises ConfigError if a batch is larger than an epoch, or if no set is trained on in a part of the run.
    """
    if all(replace(one.presence or ALWAYS, probability=1.0) == ALWAYS for one in examples):
        return _plan(examples, range(len(examples)), batch_size, seed, per_step)
    return Phases(tuple(_phases(examples, batch_size, seed, per_step)))


def _phases(examples: Sequence[Example], batch_size: int, seed: int, per_step: int) -> list[Phase]:
    """The phases of a run, one after the other; the last has no end."""
    limits = {one.presence or ALWAYS for one in examples}
    steps = {step for one in limits for step in (one.start_step, one.end_step) if step}
    epochs = {epoch for one in limits for epoch in (one.start_epoch - 1, one.end_epoch) if epoch > 0}
    phases: list[Phase] = []
    position = epoch = 0
    while True:
        step = position // per_step
        there = [i for i, one in enumerate(examples) if (one.presence or ALWAYS).at(step, epoch)]
        if not any(examples[i].role == "train" for i in there):
            raise ConfigError(
                f"dataset.start_step, end_step, start_epoch, end_epoch: no set is trained on from step {step + 1} (epoch {epoch + 1}); "
                "let one of them begin earlier or end later"
            )
        plan = _plan(examples, there, batch_size, seed, per_step)
        phases.append(Phase(position=position, epoch=epoch, plan=plan))
        by_step = [one * per_step for one in steps if one * per_step > position]
        by_epoch = [position + (one - epoch) * plan.per_epoch for one in epochs if one > epoch]
        if not by_step and not by_epoch:
            return phases
        following = min([*by_step, *by_epoch])
        epoch += ceil((following - position) / plan.per_epoch)
        position = following


def _plan(examples: Sequence[Example], numbers: Sequence[int], batch_size: int, seed: int, per_step: int) -> Plan:
    """The plan of some of the examples."""
    by_size: dict[tuple[tuple[float, str], tuple[Size, ...]], list[int]] = defaultdict(list)
    for number in numbers:
        example = examples[number]
        references = [geometry.target for geometry in reference_geometries(views(example)[0])]
        kind = (example.strength, repr(example.slider or ""))  # a batch is trained at one strength, and in one way
        by_size[kind, (example.geometry.target, *references)] += [number] * example.repeats
    buckets = tuple(tuple(by_size[size]) for size in sorted(by_size))
    shares = tuple(tuple((examples[i].presence or ALWAYS).probability for i in bucket) for bucket in buckets)
    whole = all(share == 1 for bucket in shares for share in bucket)
    plan = Plan(buckets, batch_size, seed, per_step, () if whole else shares)
    per_epoch = sum(map(plan._used, range(len(buckets))))
    if batch_size > per_epoch:
        raise ConfigError(
            f"training.batch_size = {batch_size}: the dataset gives only {per_epoch} images per epoch; use at most {per_epoch}, or raise dataset.repeats"
        )
    return plan
