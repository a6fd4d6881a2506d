"""From folders to examples: caption, bucket, role and weight of every image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...config.run import DataConfig, DatasetConfig
from ...config.toml import digest
from ...errors import DataError, problem_list, some
from ...seeding import permutation
from ...types import Example, named_references
from ..images.index import FileFacts, FileIndex, Progress
from ..images.load import file_digest, parse_colour
from .buckets import Buckets
from .captions import plain, variants
from .placement import buckets_of, placements, stretched, why_left_out
from .scan import ImageFile, scan

HELD_OUT = "held_out"
"""Role of an example that is not trained on, as caches and digests have always had it; "validation" in the options."""
MOST_STRETCHED = 0.05
"""Images that crop = "none" changes by more than this share are named in the report."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """What the user should know of the sets, beside what the examples tell."""
    unreadable: tuple[tuple[Path, str], ...] = ()
    """(file, reason) of images that cannot be used and were left out."""
    looks: Mapping[Path, tuple[str, str]] = field(default_factory=dict)
    """(perceptual hash, mean colours) of each image, as in `probe.ImageProbe`; the hash may be ""."""

    @property
    def training(self) -> list[Example]:
        """What is trained on, regularisation included."""
        return [example for example in self.examples if example.role != HELD_OUT]

    @property
    def held_out(self) -> list[Example]:
        return [example for example in self.examples if example.role == HELD_OUT]

    @property
    def captions(self) -> list[str]:
        """Every text that can occur, the empty prompt included, sorted."""
        return sorted({"", *(caption for example in self.examples for caption in example.captions)})

    @cached_property
    def digest(self) -> str:
        """Changes with any pixel, caption, size, role, weight or the order of images; not with where the files lie.

        Names decide the order and the order decides the batches, so a renamed file can be another data set.
        """
        return digest([_facts(example) for example in self.examples])


def build_dataset(
    sets: Sequence[DatasetConfig], data: DataConfig, step: int, seed: int, index: FileIndex, progress: Progress
) -> Dataset:
    """Read the sets. `step` is the family's bucket step. Raises DataError or ConfigError before anything is encoded."""
    for config in sets:
        parse_colour(config.background)
    buckets = [buckets_of(config, data, step) for config in sets]
    found = [scan(config) for config in sets]
    focused = {
        image.path for config, one in zip(sets, found, strict=True) if config.crop == "saliency" for image in one.images
    }
    survey = index.survey([image.path for one in found for image in one.images], progress, focused)
    examples: list[Example] = []
    notes = [note for one in found for note in one.notes]
    for config, one, sizes in zip(sets, found, buckets, strict=True):
        made, told = _examples(
            config, [image for image in one.images if image.path in survey.facts], sizes, survey.facts, seed
        )
        examples += made
        notes += told
    if not any(example.role == "train" for example in examples):
        raise DataError(problem_list(["no image is left to train on", *notes, *survey.problems.values()]))
    return Dataset(
        examples=tuple(_with_held_out(examples, data.validation_split, seed)),
        notes=tuple(notes),
        unreadable=tuple(survey.problems.items()),
        looks={path: (known.fingerprint, known.colours) for path, known in survey.facts.items()},
    )


def _examples(
    config: DatasetConfig,
    images: Sequence[ImageFile],
    sizes: Sequence[Buckets],
    facts: Mapping[Path, FileFacts],
    seed: int,
) -> tuple[list[Example], list[str]]:
    """The examples of one set, and what is to be said of it."""
    examples: list[Example] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    drawn: list[str] = []
    for image in images:
        known = facts[image.path]
        reason = why_left_out(known.size, config)
        if reason:
            left_out[reason].append(f"{image.path.name} ({known.width} x {known.height})")
            continue
        live = image.forms if config.varies and not config.caption_variants else None
        captions, complete = (
            (plain(image.forms), True) if live else variants(image.forms, config.caption_variants, seed)
        )
        if not complete:
            drawn.append(image.path.name)
        examples += [
            Example(
                path=image.path,
                digest=known.digest,
                captions=captions,
                geometry=geometry,
                repeats=image.repeats,
                weight=config.weight,
                caption_dropout=config.caption_dropout,
                role=HELD_OUT if config.role == "validation" else config.role,
                teacher=config.teacher if config.role == "regularisation" else "images",
                mask=image.mask,
                references=image.references,
                may_flip=config.flip,
                background=config.background,
                live=live,
            )
            for geometry in placements(known, config, sizes, seed)
        ]
    return examples, _notes(config, examples, left_out, drawn)


def _notes(
    config: DatasetConfig, examples: list[Example], left_out: Mapping[str, list[str]], drawn: list[str]
) -> list[str]:
    notes = [f"{config.folder}: {len(names)} left out, {reason}: {some(names)}" for reason, names in left_out.items()]
    if drawn:
        notes.append(
            f"{config.folder}: the captions of {len(drawn)} images can take more forms than caption_variants = "
            f"{config.caption_variants}; that many of each are drawn by the seed and encoded in advance"
        )
    if any(example.live for example in examples):
        notes.append(f"{config.folder}: captions are made and encoded anew at every visit (caption_variants = 0)")
    bent = [e.path.name for e in examples if stretched(e.geometry) > MOST_STRETCHED]
    if bent and config.crop == "none":
        most = max(stretched(example.geometry) for example in examples)
        notes.append(
            f"{config.folder}: {len(bent)} images are stretched to their bucket, by up to {most:.0%}: {some(bent)}"
        )
    return notes


def _with_held_out(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Set a seeded share of the training images aside, at all their resolutions and in every set that has them.

    Raises DataError if that leaves nothing to train on.
    """
    images = list(dict.fromkeys(example.path for example in examples if example.role == "train"))
    count = round(share * len(images))
    if share and count in (0, len(images)):
        raise DataError(
            f"data.validation_split = {share} of {len(images)} images is {count}: use more images or another share"
        )
    chosen = {images[i] for i in permutation(len(images), seed, "held out")[:count]}
    return [_held_out(e) if e.role == "train" and e.path in chosen else e for e in examples]


def _facts(example: Example) -> dict[str, Any]:
    """Everything about an example, with the contents of files in place of their paths."""
    data = {**asdict(example), "path": "", "mask": _content(example.mask), "reference": ""}
    del data["references"]
    return {**data, **named_references([_content(path) for path in example.references])}


def _content(path: Path | None) -> str:
    """Digest of a file; "" for none."""
    return file_digest(path) if path else ""


def _held_out(example: Example) -> Example:
    """Measured in one way only: upright, with its first caption in its plain form."""
    return replace(
        example, role=HELD_OUT, may_flip=False, caption_dropout=0.0, captions=example.captions[:1], live=None
    )
