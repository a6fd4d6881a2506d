"""What the data doctor says of an examination: which images stand out, by how much, and what to do about them.

Every statement has an interval: 95 % by Student's t over the noise levels, of the logarithm of a ratio of losses, so that levels with
large losses do not decide alone. Nothing is changed in a run: people decide.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..types import Json
from .examine import DRAWS, Examined

T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""{degrees of freedom: 97.5 % quantile of Student's t}."""
FEWEST = 4
"""Images below which none can stand out."""
TWIN = 0.15
"""Distance of two images' latents, as a share of the median distance, below which they are near doubles."""
CLEAR = 0.05
"""Logarithm of the ratio of two losses below which a difference means nothing to anybody."""
SHORT = 0.6
"""Share of the usual fall of the loss below which an image profits too little from the LoRA."""
CROWDED, LEAST_SHARE = 3.0, 0.4
"""A caption is over-represented that takes this many times the median share of an epoch, and this share of it at least."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of logarithms of ratios, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def fall(self) -> str:
        """The ratio as a fall of the loss in percent, with the interval."""
        percent = [100 * (1 - math.exp(-value)) for value in (self.mean, self.low, self.high)]
        return f"{percent[0]:.0f} % ({percent[1]:.0f} to {percent[2]:.0f} %)"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement about the dataset."""

    kind: str
    """fights, foreign, known, caption, double or crowd."""
    images: list[str]
    text: str

    def to_dict(self) -> Json:
        return asdict(self)


def falls(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """How far a loss falls from `before` to `after`, by noise level: log(before / after)."""
    return [math.log(max(a, 1e-12) / max(b, 1e-12)) for a, b in zip(before, after, strict=True)]


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value for each noise level, and its 95 % interval."""
    mean = statistics.mean(values)
    reach = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - reach, high=mean + reach)


def diagnose(images: Sequence[Examined]) -> list[Finding]:
    """The findings, the gravest first. [] where nothing stands out, or there are too few images to tell."""
    if len(images) < FEWEST:
        return []
    return [*_captions(images), *_gains(images), *_doubles(images), *_crowds(images)]


def _captions(images: Sequence[Examined]) -> list[Finding]:
    """Images that the base model predicts better with the caption of another image."""
    found = []
    for image in images:
        if not image.with_rival:
            continue
        better = interval(falls(image.base, image.with_rival))
        if better.low > 0 and better.mean > CLEAR:
            found.append(
                Finding(
                    kind="caption",
                    images=[image.name],
                    text=f'{image.name}: the caption "{image.caption}" fits it worse than "{image.rival}" of another image, with which '
                    f"the base model's loss is lower by {better.fall}: check the caption",
                )
            )
    return found


def _gains(images: Sequence[Examined]) -> list[Finding]:
    """Images that profit from the LoRA far less than the others, although they are trained on. They are compared level by level."""
    by_level = [falls(image.base, image.lora) for image in images]
    medians = [statistics.median(level) for level in zip(*by_level, strict=True)]
    usual = statistics.mean(medians)
    if usual < CLEAR:
        return []  # the LoRA has not learnt anything yet
    others = f"while that of the others falls by {100 * (1 - math.exp(-usual)):.0f} % (median)"
    low_base = statistics.quantiles([statistics.mean(image.base) for image in images], n=10)[0]
    found = []
    for image, own in zip(images, by_level, strict=True):
        gain, behind = interval(own), interval([a - b for a, b in zip(own, medians, strict=True)])
        if gain.high < 0:
            rise = Interval(mean=gain.mean, low=gain.high, high=gain.low)
            percent = [100 * (math.exp(-value) - 1) for value in (rise.mean, rise.low, rise.high)]
            text = f"its loss rises by {percent[0]:.0f} % ({percent[1]:.0f} to {percent[2]:.0f} %), {others}: it fights the rest of the set; take it out, or give it a set and a trigger of its own"
            found.append(Finding(kind="fights", images=[image.name], text=f"{image.name}: {text}"))
        elif behind.high < 0 and gain.mean < SHORT * usual:
            known = statistics.mean(image.base) <= low_base
            why = "the base model can make it already" if known else "it has little in common with the rest of the set"
            text = f"its loss falls by {gain.fall}, {others}: {why}; look at it"
            found.append(Finding(kind="known" if known else "foreign", images=[image.name], text=f"{image.name}: {text}"))  # fmt: skip
    return found


def _doubles(images: Sequence[Examined]) -> list[Finding]:
    """Pairs whose latents are nearly equal: each counts twice in training."""
    found, said = [], set[frozenset[str]]()
    for image in images:
        pair = frozenset((image.name, image.nearest))
        if image.distance < TWIN and pair not in said:
            said.add(pair)
            found.append(
                Finding(
                    kind="double",
                    images=sorted(pair),
                    text=f"{' and '.join(sorted(pair))} are near doubles (their latents are {image.distance:.0%} of the usual distance apart): "
                    "what they show counts twice; take one out",
                )
            )
    return found


def _crowds(images: Sequence[Examined]) -> list[Finding]:
    """Captions that take much more of an epoch than the others."""
    uses: dict[str, int] = defaultdict(int)
    names: dict[str, list[str]] = defaultdict(list)
    for image in images:
        uses[image.caption] += image.uses
        names[image.caption].append(image.name)
    if len(uses) < 3:
        return []
    total, median = sum(uses.values()), statistics.median(uses.values())
    return [
        Finding(
            kind="crowd",
            images=names[caption],
            text=f'"{caption}" takes {count / total:.0%} of an epoch, {count / median:.0f} times as much as the median caption: '
            "lower the repeats of these images, or add others",
        )
        for caption, count in uses.items()
        if count >= CROWDED * median and count / total >= LEAST_SHARE
    ]


def record(images: Sequence[Examined], step: int) -> Json:
    """What doctor.json holds: the findings, and the measurements they come from."""
    return {
        "format": 1,
        "step": step,
        "draws": DRAWS,
        "findings": [finding.to_dict() for finding in diagnose(images)],
        "images": [image.to_dict() for image in images],
    }


def lines(findings: Sequence[str], images: int, step: int) -> list[str]:
    """The findings as text, with what was examined."""
    head = f"data doctor: {images} images examined with the LoRA of step {step}"
    if images < FEWEST:
        return [f"{head}: too few to tell one from the others"]
    if not findings:
        return [f"{head}: none stands out"]
    return [f"{head}: {len(findings)} to look at", *(f"  {text}" for text in findings)]
