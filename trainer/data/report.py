"""What a data set is and what became of each image: as text, as JSON, and as a list of warnings."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ..errors import DataError, problem_list
from ..types import Example, Size
from .images.duplicates import near_duplicates
from .sets.dataset import Dataset

PASSES = {"a character": (2000, 7000), "a style": (8000, 12000)}
"""How many images are seen in all, as people who trained many LoRAs recommend: {what for: (least, most)}."""
SHOWN = 5
"""Names in a line of the text; the JSON has all."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    width: int
    height: int
    images: int
    per_epoch: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Names are paths below the folder that all images share."""

    roles: dict[str, int]
    """{role: images}; an image at several sizes counts once."""
    smallest: Size
    median: Size
    """By area."""
    largest: Size
    buckets: list[Bucket]
    """Of what is trained on."""
    repeats: dict[str, int]
    """{how often an image is seen per epoch: how many images}."""
    per_epoch: int
    """Images seen per epoch, each as often as it repeats."""
    captions: int
    """Different captions."""
    without_caption: list[str]
    copies: list[list[str]]
    """Groups of files with the same content under several names."""
    near_duplicates: list[list[str]] | None
    """Groups of images that look alike; None if nobody looked, for want of imagehash."""
    enlarged: dict[str, float]
    """{name: factor} of images smaller than their bucket."""
    unreadable: dict[str, str]
    """{name: reason}; left out."""
    notes: list[str]
    """What else is to be known of the sets, images that were left out and why among it."""

    @property
    def warnings(self) -> list[str]:
        """What `data.strict` refuses."""
        found = [f"left out, {reason}" for reason in self.unreadable.values()]
        for names, what in (
            (self.without_caption, "have no caption"),
            (list(self.enlarged), "are smaller than their bucket and were enlarged"),
            ([_group(group) for group in self.copies], "groups are the same file under several names"),
            ([_group(group) for group in self.near_duplicates or []], "groups look alike"),
        ):
            if names:
                kind = what if what.startswith("groups") else f"images {what}"
                found.append(f"{len(names)} {kind}: {_some(names)}")
        return found + self.notes

    def text(self) -> str:
        """In words."""
        total = sum(self.roles.values())
        roles = ", ".join(f"{count} {role.replace('_', ' ')}" for role, count in self.roles.items())
        lines = [f"{roles} images" if len(self.roles) > 1 or "train" not in self.roles else f"{total} train images"]
        lines.append(f"  sizes: {_size(self.smallest)} to {_size(self.largest)}, median {_size(self.median)}")
        most = max((bucket.per_epoch for bucket in self.buckets), default=1)
        for bucket in self.buckets:
            bar = "#" * max(1, round(24 * bucket.per_epoch / most))
            lines.append(f"  bucket {bucket.width} x {bucket.height}: {bucket.per_epoch} per epoch {bar}")
        if set(self.repeats) != {"1"}:
            lines.append("  repeats: " + ", ".join(f"{n} images {r} x per epoch" for r, n in self.repeats.items()))
        lines.append(f"  {self.captions} different captions")
        if self.near_duplicates is None:
            lines.append("  images that look alike were not looked for: pip install imagehash")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, warnings included."""
        return {**asdict(self), "warnings": self.warnings}


def make_report(dataset: Dataset) -> Report:
    images = list({example.path: example for example in dataset.examples}.values())
    name = namer(dataset)
    areas = sorted((example.geometry.original for example in images), key=lambda size: size[0] * size[1])
    order = ("train", "regularisation", "held_out")
    roles = Counter(role for _, role in {(example.path, example.role) for example in dataset.examples})
    by_content: dict[str, list[str]] = defaultdict(list)
    for example in images:
        by_content[example.digest].append(name(example.path))
    once = list({example.digest: example for example in images}.values())
    looks = [dataset.looks.get(example.path, ("", "")) for example in once]
    training = dataset.training
    return Report(
        roles={role: roles[role] for role in order if roles[role]},
        smallest=areas[0],
        median=areas[len(areas) // 2],
        largest=areas[-1],
        buckets=_buckets(training),
        repeats={str(r): n for r, n in sorted(Counter(e.repeats for e in training).items())},
        per_epoch=sum(example.repeats for example in training),
        captions=len({caption for example in dataset.examples for caption in example.captions}),
        without_caption=[name(e.path) for e in images if not any(caption.strip() for caption in e.captions)],
        copies=[names for names in by_content.values() if len(names) > 1],
        near_duplicates=[[name(once[i].path) for i in group] for group in near_duplicates(looks)]
        if any(fingerprint for fingerprint, _ in looks)
        else None,
        enlarged={name(e.path): round(factor, 2) for e in training if (factor := enlargement(e)) > 1},
        unreadable={name(path): reason for path, reason in dataset.unreadable},
        notes=list(dataset.notes),
    )


def enlargement(example: Example) -> float:
    """How much larger than its file an image is trained."""
    place = example.geometry
    return max(place.resized[0] / place.original[0], place.resized[1] / place.original[1])


def refuse_warnings(report: Report) -> None:
    """For `data.strict`. Raises DataError naming every warning."""
    if report.warnings:
        raise DataError(problem_list([f"data.strict: {warning}" for warning in report.warnings]))


def epochs(report: Report, batch_size: int, accumulation: int, steps: int) -> dict[str, Any]:
    """How steps and epochs relate, and how many steps people recommend. `accumulation` counts all forward passes of a step."""
    batches = sum(ceil(bucket.per_epoch / batch_size) for bucket in report.buckets)
    per_step = batch_size * accumulation
    return {
        "seen_per_epoch": report.per_epoch,
        "batches_per_epoch": batches,
        "steps_per_epoch": ceil(batches / accumulation),
        "epochs": steps * accumulation / batches,
        "recommended_steps": {
            name: [ceil(least / per_step), ceil(most / per_step)] for name, (least, most) in PASSES.items()
        },
    }


def epochs_text(report: Report, batch_size: int, accumulation: int, steps: int) -> str:
    found = epochs(report, batch_size, accumulation, steps)
    ranges = ", ".join(f"{low} to {high} steps for {name}" for name, (low, high) in found["recommended_steps"].items())
    return (
        f"seen per epoch: {found['seen_per_epoch']} images in {found['batches_per_epoch']} batches = {found['steps_per_epoch']} steps\n"
        f"{steps} steps are {found['epochs']:.1f} epochs; usual at this batch size: {ranges}"
    )


def _buckets(training: Sequence[Example]) -> list[Bucket]:
    images: Counter[Size] = Counter()
    seen: Counter[Size] = Counter()
    for example in training:
        images[example.geometry.target] += 1
        seen[example.geometry.target] += example.repeats
    return [Bucket(width=w, height=h, images=images[w, h], per_epoch=seen[w, h]) for w, h in sorted(seen)]


def namer(dataset: Dataset) -> Callable[[Path], str]:
    """Names as short as they can be: below the folder that all share."""
    paths = [example.path for example in dataset.examples] + [path for path, _ in dataset.unreadable]
    common = os.path.commonpath([path.parent for path in paths])
    return lambda path: Path(os.path.relpath(path, common)).as_posix()


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _group(names: Sequence[str]) -> str:
    return " = ".join(names[:3]) + (f" = {len(names) - 3} more" if len(names) > 3 else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
