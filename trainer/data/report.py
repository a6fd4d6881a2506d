"""The report on a dataset: sizes, buckets and captions, with warnings about single images, as text and as JSON."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import TypedDict

from ..config.run import PASSES
from ..errors import DataError, problem_list, some
from ..types import ALWAYS, Example, Json, Size
from .images.duplicates import near_duplicates
from .order import drawn
from .sets.dataset import Dataset

SHOWN_ROLES = {"held_out": "validation"}
"""{role in the cache: its name in the report}, where they differ."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket and the number of its images; `per_epoch` counts each as often as it repeats."""

    width: int
    height: int
    images: int
    per_epoch: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures about a dataset. Images are named by their paths below the folder that all share. Fields are the keys of the JSON."""

    roles: dict[str, int]
    """{role: number of images}. An image at several sizes counts once."""
    smallest: Size
    median: Size
    """The median by area."""
    largest: Size
    buckets: list[Bucket]
    """The buckets of the images that are trained on."""
    repeats: dict[str, int]
    """{repeats per epoch: number of images}."""
    per_epoch: int
    """Number of images per epoch, each counted as often as it repeats."""
    captions: int
    """Number of different captions."""
    without_caption: list[str]
    copies: list[list[str]]
    """Groups of files with identical content."""
    near_duplicates: list[list[str]] | None
    """Groups of near-duplicates; None if they were not searched for because imagehash is missing."""
    enlarged: dict[str, float]
    """{name: factor} of images that are upscaled because they are smaller than their bucket."""
    unreadable: dict[str, str]
    """{name: reason} of images that were left out because they cannot be read."""
    notes: list[str]
    """Other notes about the sets, among them which images were left out and why."""
    about: list[str]
    """What is as it should be and worth knowing: where captions come from, which folders of tools were left out."""

    @property
    def warnings(self) -> list[str]:
        """The problems for which `data.strict` refuses a dataset."""
        warnings = [f"left out, {reason}" for reason in self.unreadable.values()]
        for names, what in (
            (self.without_caption, "have no caption"),
            (list(self.enlarged), "are smaller than their bucket and are upscaled"),
            ([_group(group) for group in self.copies], "groups are the same file under several names"),
            ([_group(group) for group in self.near_duplicates or []], "groups are near-duplicates"),
        ):
            if names:
                kind = what if what.startswith("groups") else f"images {what}"
                warnings.append(f"{len(names)} {kind}: {some(names)}")
        return warnings + self.notes

    def text(self, *, bars: bool = True) -> str:
        """The report in lines of plain text; each bucket with a bar as long as its share, for a console."""
        total = sum(self.roles.values())
        roles = ", ".join(f"{count} {SHOWN_ROLES.get(role, role)}" for role, count in self.roles.items())
        lines = [f"{roles} images" if len(self.roles) > 1 or "train" not in self.roles else f"{total} train images"]
        lines.append(f"  sizes: {_size(self.smallest)} to {_size(self.largest)}, median {_size(self.median)}")
        most = max((bucket.per_epoch for bucket in self.buckets), default=1)
        for bucket in self.buckets:
            bar = " " + "#" * max(1, round(24 * bucket.per_epoch / most)) if bars else ""
            lines.append(f"  bucket {bucket.width} x {bucket.height}: {bucket.per_epoch} per epoch{bar}")
        if set(self.repeats) != {"1"}:
            lines.append("  repeats: " + ", ".join(f"{n} images {r} x per epoch" for r, n in self.repeats.items()))
        lines.append(f"  {self.captions} different captions")
        lines += [f"  {line}" for line in self.about]
        if self.near_duplicates is None:
            lines.append("  near-duplicates were not searched for: pip install imagehash")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_dict(self) -> Json:
        """The report as a JSON object, including the warnings."""
        return {**asdict(self), "warnings": self.warnings}


def make_report(dataset: Dataset) -> Report:
    """The report on a dataset, computed from its examples."""
    images = list({example.path: example for example in dataset.examples}.values())
    name = namer(dataset)
    areas = sorted((example.geometry.original for example in images), key=lambda size: size[0] * size[1])
    order = ("train", "regularisation", "held_out")
    roles = Counter(role for _, role in {(example.path, example.role) for example in dataset.examples})
    by_content: dict[str, list[str]] = defaultdict(list)
    for example in images:
        by_content[example.digest].append(name(example.path))
    once = list({example.digest: example for example in images}.values())
    fingerprints = [dataset.fingerprints.get(example.path, ("", "")) for example in once]
    training = dataset.training
    return Report(
        roles={role: roles[role] for role in order if roles[role]},
        smallest=areas[0],
        median=areas[len(areas) // 2],
        largest=areas[-1],
        buckets=_buckets(training),
        repeats={str(r): n for r, n in sorted(Counter(e.repeats for e in training).items())},
        per_epoch=sum(bucket.per_epoch for bucket in _buckets(training)),
        captions=len({text for example in dataset.examples for text in example.texts}),
        without_caption=[
            name(e.path)
            for e in images
            if not any(caption.strip() for caption in e.captions) and e.path not in dataset.asked_empty
        ],
        copies=[names for names in by_content.values() if len(names) > 1],
        near_duplicates=[[name(once[i].path) for i in group] for group in near_duplicates(fingerprints)]
        if any(fingerprint for fingerprint, _ in fingerprints)
        else None,
        enlarged={name(e.path): round(factor, 2) for e in training if (factor := enlargement(e)) > 1},
        unreadable={name(path): reason for path, reason in dataset.unreadable},
        notes=list(dataset.notes),
        about=list(dataset.about),
    )


def enlargement(example: Example) -> float:
    """The factor by which an image is resized to its bucket, in the direction in which it is larger."""
    geometry = example.geometry
    return max(geometry.resized[0] / geometry.original[0], geometry.resized[1] / geometry.original[1])


def refuse_warnings(report: Report) -> None:
    """Raise DataError that names every warning, if there are any. `data.strict` requests this."""
    if report.warnings:
        raise DataError(problem_list([f"data.strict: {warning}" for warning in report.warnings]))


class Epochs(TypedDict):
    """How the steps of a run relate to epochs."""

    seen_per_epoch: int
    batches_per_epoch: int
    steps_per_epoch: int
    epochs: float
    recommended_steps: dict[str, list[int]]
    """{"a character" or "a style": [least, most]}, see `PASSES`."""


def epochs(report: Report, batch_size: int, accumulation: int, steps: int) -> Epochs:
    """How steps and epochs relate, and the recommended numbers of steps. `accumulation` counts all forward passes of a step."""
    batches = sum(ceil(bucket.per_epoch / batch_size) for bucket in report.buckets)
    per_step = batch_size * accumulation
    return {
        "seen_per_epoch": report.per_epoch,
        "batches_per_epoch": batches,
        "steps_per_epoch": ceil(batches / accumulation),
        "epochs": steps * accumulation / batches,
        "recommended_steps": {
            f"a {goal}": [ceil(least / per_step), ceil(most / per_step)] for goal, (least, most) in PASSES.items()
        },
    }


def epochs_text(report: Report, batch_size: int, accumulation: int, steps: int) -> str:
    """The result of `epochs` in two lines."""
    figures = epochs(report, batch_size, accumulation, steps)
    ranges = ", ".join(
        f"{low} to {high} steps for {name}" for name, (low, high) in figures["recommended_steps"].items()
    )
    return (
        f"per epoch: {figures['seen_per_epoch']} images in {figures['batches_per_epoch']} batches = {figures['steps_per_epoch']} steps\n"
        f"{steps} steps are {figures['epochs']:.1f} epochs; usual at this batch size: {ranges}"
    )


def _buckets(training: Sequence[Example]) -> list[Bucket]:
    images: Counter[Size] = Counter()
    uses: Counter[tuple[Size, float]] = Counter()
    seen: Counter[Size] = Counter()
    for example in training:
        images[example.geometry.target] += 1
        uses[example.geometry.target, (example.presence or ALWAYS).probability] += example.repeats
    for (size, share), count in uses.items():
        seen[size] += drawn(count, share)
    return [Bucket(width=w, height=h, images=images[w, h], per_epoch=seen[w, h]) for w, h in sorted(seen)]


def namer(dataset: Dataset) -> Callable[[Path], str]:
    """A function that names images by their paths below the folder that all share."""
    paths = [example.path for example in dataset.examples] + [path for path, _ in dataset.unreadable]
    common = os.path.commonpath([path.parent for path in paths])
    return lambda path: Path(os.path.relpath(path, common)).as_posix()


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _group(names: Sequence[str]) -> str:
    return " = ".join(names[:3]) + (f" = {len(names) - 3} more" if len(names) > 3 else "")
