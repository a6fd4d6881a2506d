"""Batches by position: which examples train together is a function of (seed, epoch), the position is one integer.

An epoch visits every example `repeats` times. Examples of one bucket, and of equal sizes of reference images, are shuffled and cut into batches; a last, smaller
batch is kept. Then the batches of all buckets are shuffled. With which caption and which way round an example is seen is a
function of (seed, epoch, example): neither the batch size nor other images change it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ..errors import ConfigError
from ..seeding import permutation, uniform
from ..types import Batch, Conditioning, Example, Size
from .cache.keys import View, reference_geometries, views
from .cache.online import Items
from .sets.captions import caption_at

Normalise = Callable[[torch.Tensor], torch.Tensor]
Condition = Callable[[Sequence["PickedExample"]], Conditioning]


class Visit(NamedTuple):
    """One time that an example is seen."""

    number: int
    """Of the example."""
    epoch: int
    turn: int
    """Which of its `repeats` times in this epoch, from 0."""


@dataclass(frozen=True)
class Plan:
    """The order of training: position -> visits."""

    buckets: tuple[tuple[int, ...], ...]
    """Example numbers per bucket, each as often as it is seen per epoch, one after the other."""
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches per epoch; the same in every epoch."""
        return sum(-(-len(bucket) // self.batch_size) for bucket in self.buckets)

    def at(self, position: int) -> tuple[Visit, ...]:
        return _epoch(self, position // self.per_epoch)[position % self.per_epoch]


@lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> list[tuple[Visit, ...]]:
    batches = []
    for number, bucket in enumerate(plan.buckets):
        visits = [Visit(example, epoch, turn) for example, group in groupby(bucket) for turn, _ in enumerate(group)]
        order = [visits[i] for i in permutation(len(visits), plan.seed, "bucket", epoch, number)]
        batches += [tuple(order[i : i + plan.batch_size]) for i in range(0, len(order), plan.batch_size)]
    return [batches[i] for i in permutation(len(batches), plan.seed, "epoch", epoch)]


def make_plan(examples: Sequence[Example], batch_size: int, seed: int) -> Plan:
    """Raises ConfigError if a batch is larger than the whole set."""
    by_size: dict[tuple[Size, ...], list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        shown = [place.target for place in reference_geometries(views(example)[0])]
        by_size[(example.geometry.target, *shown)] += [number] * example.repeats
    seen = sum(len(bucket) for bucket in by_size.values())
    if batch_size > seen:
        raise ConfigError(
            f"training.batch_size = {batch_size}: the set gives only {seen} images per epoch; use at most {seen}, or raise dataset.repeats"
        )
    return Plan(tuple(tuple(by_size[size]) for size in sorted(by_size)), batch_size, seed)


@dataclass(frozen=True, kw_only=True)
class PickedExample:
    """One sample of a batch: how the image is seen, and with which caption."""

    view: View
    key: str
    """Of its latents in the cache."""
    caption: str


class CachedBatches:
    """Micro-batches of a run, read from the cache, or from what takes its place."""

    def __init__(
        self,
        examples: Sequence[Example],
        plan: Plan,
        cache: Items,
        vae: str,
        *,
        normalise: Normalise,
        condition: Condition,
        device: torch.device,
    ) -> None:
        """`vae` is the identity of the VAE; `normalise` maps raw latents to model space; `condition` makes the network's
        conditioning for picked samples, on the device."""
        self.examples, self.plan, self.cache = examples, plan, cache
        self.normalise, self.condition, self.device = normalise, condition, device
        self._views = [[(view, view.key(vae)) for view in views(example)] for example in examples]

    def size(self, position: int) -> int:
        return len(self.plan.at(position))

    def at(self, position: int) -> Batch:
        return self.collate([self.pick(visit) for visit in self.plan.at(position)])

    def pick(self, visit: Visit) -> PickedExample:
        """A function of the seed, the epoch, and the example: its content, its size, and which of its repeats it is."""
        example, ways = self.examples[visit.number], self._views[visit.number]
        width, height = example.geometry.target
        key = (self.plan.seed, "item", visit.epoch, example.digest, width, height, visit.turn)
        view, latent = ways[int(uniform(*key, "flip") * len(ways))]
        dropped = uniform(*key, "caption dropout") < example.caption_dropout
        caption = "" if dropped else caption_at(example, *key)
        return PickedExample(view=view, key=latent, caption=caption)

    def collate(self, picks: Sequence[PickedExample]) -> Batch:
        """A batch of given samples, on the device."""
        items = [self.cache.get(pick.key) for pick in picks]
        return Batch(
            latents_BCHW=self.normalise(torch.stack([item["latents"] for item in items]).to(self.device)),
            conditioning=self.condition(picks),
            weight_B=torch.tensor([pick.view.example.weight for pick in picks], device=self.device),
            mask_B1HW=_masks(items, self.device),
            names=tuple(pick.view.example.path.name for pick in picks),
            by_base_B=_by_base(picks, self.device),
        )

    def single(self, number: int) -> Batch:
        """Example `number` alone, upright, with its first caption."""
        view, latent = self._views[number][0]
        return self.collate([PickedExample(view=view, key=latent, caption=view.example.captions[0])])


class Singles(Sequence[Batch]):
    """Every example alone, each made when it is asked for: a large held-out set takes no memory."""

    def __init__(self, batches: CachedBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.examples)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[index] for index in range(len(self))[number]]
        return self.batches.single(range(len(self))[number])


def _by_base(picks: Sequence[PickedExample], device: torch.device) -> torch.Tensor | None:
    flags = [pick.view.example.teacher == "base" for pick in picks]
    return torch.tensor(flags, device=device) if any(flags) else None


def _masks(items: Sequence[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor | None:
    """(B, 1, H, W), ones for images without a mask; None if no image has one."""
    if not any("mask" in item for item in items):
        return None
    blank = torch.ones(1, *items[0]["latents"].shape[-2:])
    return torch.stack([item.get("mask", blank) for item in items]).to(device)
