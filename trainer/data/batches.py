"""Batches by position: the content of a batch is a function of (seed, position), so a resumed run needs one integer.

Which examples a batch has is in `order.py`. Caption, mirroring and variant of an example are a function of (seed, epoch,
example): neither the batch size nor other images change them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch

from ..seeding import uniform
from ..types import Batch, Conditioning, Example, Preserved, Slider
from .cache.keys import View, views
from .cache.online import Items
from .order import AnyPlan, Draw
from .sets.captions import caption_at, class_caption, warming_caption

GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio's fractional part: of all numbers the hardest to approximate by fractions."""
Normalise = Callable[[torch.Tensor], torch.Tensor]
"""Maps raw latents of the VAE to model space."""
Condition = Callable[[Sequence["PickedExample"]], Conditioning]
"""Makes the denoiser's conditioning for the samples of a batch."""


@dataclass(frozen=True, kw_only=True)
class PickedExample:
    """One sample of a batch: a view of an example, and the caption that it is trained with."""

    view: View
    key: str
    """The cache key of its latents."""
    caption: str
    share: float = 0.0
    """See `Batch.shares`."""
    preserved: str | None = None
    """The caption that is held to the base's prediction in this use; None where nothing is held."""


class CachedBatches:
    """The micro-batches of a run, read from the cache or from `OnlineItems`."""

    def __init__(
        self,
        examples: Sequence[Example],
        plan: AnyPlan,
        cache: Items,
        vae: str,
        *,
        normalise: Normalise,
        condition: Condition,
        device: torch.device,
        guided: bool = False,
    ) -> None:
        """`vae` is the fingerprint of the VAE; `normalise` maps raw latents to model space; `condition` makes the denoiser's
        conditioning for the picked samples, on the device. `guided`: a batch has the conditioning of the empty text, too."""
        self.examples, self.plan, self.cache, self.guided = examples, plan, cache, guided
        self.normalise, self.condition, self.device = normalise, condition, device
        self._views = [[(view, view.key(vae)) for view in views(example)] for example in examples]

    def size(self, position: int) -> int:
        """Number of samples at a position, without reading them."""
        return len(self.plan.at(position))

    def at(self, position: int) -> Batch:
        """The batch at a position, on the device."""
        step = position // self.plan.per_step
        return self.collate([self.pick(draw, step) for draw in self.plan.at(position)])

    def pick(self, draw: Draw, step: int | None = None) -> PickedExample:
        """View and caption of a draw, determined by the seed, the epoch, the example's content and size, and the repeat.

        `step` counts the finished steps, for captions that grow in the first ones; None: after these.
        """
        example, choices = self.examples[draw.number], self._views[draw.number]
        width, height = example.geometry.target
        key = (self.plan.seed, "item", draw.epoch, example.digest, width, height, draw.turn)
        view, latent = choices[int(uniform(*key, "flip") * len(choices))]
        dropped = uniform(*key, "caption dropout") < example.caption_dropout
        if example.caption_dropout_every and (draw.epoch + 1) % example.caption_dropout_every == 0:
            dropped = True
        warming = example.warmup is not None and step is not None and step < example.warmup.steps
        made = warming_caption(example, step or 0, *key) if warming else caption_at(example, *key)
        caption = "" if dropped else made
        preserved = class_caption(example, caption)
        rule = example.preserve
        if rule is None or not rule.weight or uniform(*key, "preserve") >= rule.share:
            preserved = None
        share = share_of(self.plan.seed, example, draw)
        return PickedExample(view=view, key=latent, caption=caption, share=share, preserved=preserved)

    def collate(self, picks: Sequence[PickedExample]) -> Batch:
        """A batch of the given samples, on the device."""
        items = [self.cache.get(pick.key) for pick in picks]
        guided = [
            self.guided
            and bool(pick.caption)
            and pick.view.example.teacher != "base"
            and pick.view.example.slider is None
            for pick in picks
        ]
        return Batch(
            latents_BCHW=self.normalise(torch.stack([item["latents"] for item in items]).to(self.device)),
            conditioning=self.condition(picks),
            weight_B=torch.tensor([pick.view.example.weight for pick in picks], device=self.device),
            mask_B1HW=_masks(items, self.device),
            names=tuple(pick.view.example.path.name for pick in picks),
            shares=tuple(pick.share for pick in picks),
            ranges=_ranges(picks),
            by_base_B=_by_base(picks, self.device),
            unconditional=self.condition([replace(pick, caption="") for pick in picks]) if any(guided) else None,
            guided_B=torch.tensor(guided, device=self.device) if any(guided) else None,
            preserved=self._preserved(picks),
            strength=picks[0].view.example.strength,
            slider=self._slider(picks),
        )

    def _slider(self, picks: Sequence[PickedExample]) -> Slider | None:
        """The two prompts of the slider that this batch trains; a batch has one or none (`order.make_plan`)."""
        if (rule := picks[0].view.example.slider) is None:
            return None
        positive, negative = (
            self.condition([replace(pick, caption=text) for pick in picks]) for text in (rule.positive, rule.negative)
        )
        return Slider(positive=positive, negative=negative, scale=rule.scale)

    def _preserved(self, picks: Sequence[PickedExample]) -> Preserved | None:
        """The samples whose caption without the trigger is held to the base's prediction, see `Batch.preserved`."""
        slots = [slot for slot, pick in enumerate(picks) if pick.preserved is not None]
        if not slots:
            return None
        weights = []
        for slot in slots:
            rule, weight = picks[slot].view.example.preserve, picks[slot].view.example.weight
            weights.append(weight * rule.weight / rule.share if rule is not None else weight)
        return Preserved(
            slots=tuple(slots),
            conditioning=self.condition([replace(picks[slot], caption=picks[slot].preserved or "") for slot in slots]),
            weight_S=torch.tensor(weights, device=self.device),
        )

    def single(self, number: int) -> Batch:
        """A batch of the single example `number`, not mirrored, with its first caption; one that is held out also has the caption
        without the trigger, or the empty one, on which the drift is measured."""
        view, latent = self._views[number][0]
        example = view.example
        caption = example.captions[0]
        neutral = (class_caption(example, caption) or "") if example.role == "held_out" else None
        return self.collate([PickedExample(view=view, key=latent, caption=caption, preserved=neutral)])


def share_of(seed: int, example: Example, draw: Draw) -> float:
    """A point of [0, 1) for a use of an image: the golden ratio's sequence from a random start, so that the visits of an image
    come close to every noise level as soon as they can (Kronecker sequence; low discrepancy for every number of visits)."""
    visit = draw.epoch * example.repeats + draw.turn
    width, height = example.geometry.target
    return (uniform(seed, "share", example.digest, width, height) + visit * GOLDEN) % 1.0


class Singles(Sequence[Batch]):
    """A sequence with one batch per example. Each is read when it is accessed, so a large held-out set takes no memory."""

    def __init__(self, batches: CachedBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches.examples)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [self[index] for index in range(len(self))[number]]
        return self.batches.single(range(len(self))[number])


def _ranges(picks: Sequence[PickedExample]) -> tuple[tuple[float, float] | None, ...]:
    """See `Batch.ranges`."""
    ranges = tuple(pick.view.example.timestep_range for pick in picks)
    return ranges if any(ranges) else ()


def _by_base(picks: Sequence[PickedExample], device: torch.device) -> torch.Tensor | None:
    """Returns (B,) booleans, see `Batch.by_base_B`; None if all are False."""
    flags = [pick.view.example.teacher == "base" for pick in picks]
    return torch.tensor(flags, device=device) if any(flags) else None


def _masks(items: Sequence[dict[str, torch.Tensor]], device: torch.device) -> torch.Tensor | None:
    """Masks (B, 1, H, W), all ones for images without one; None if no image has a mask."""
    if not any("mask" in item for item in items):
        return None
    blank = torch.ones(1, *items[0]["latents"].shape[-2:])
    return torch.stack([item.get("mask", blank) for item in items]).to(device)
