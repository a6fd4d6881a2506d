"""From folders to examples: caption, bucket, role and weight of every image, and a report of what became of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

from ..config import DataConfig, DatasetConfig
from ..config_file import digest
from ..errors import DataError
from ..records import Example, Size
from ..seeding import permutation
from .buckets import Buckets
from .images import file_digest, parse_colour
from .index import FileIndex, Progress
from .sources import find_images


@dataclass(frozen=True, kw_only=True)
class Dataset:
    examples: tuple[Example, ...]

    @property
    def training(self) -> list[Example]:
        """What is trained on, regularisation included."""
        return [example for example in self.examples if example.role != "held_out"]

    @property
    def held_out(self) -> list[Example]:
        return [example for example in self.examples if example.role == "held_out"]

    @property
    def captions(self) -> list[str]:
        """Every text that can occur, the empty prompt included, sorted."""
        return sorted({"", *(caption for example in self.examples for caption in example.captions)})

    @cached_property
    def digest(self) -> str:
        """Changes with any pixel, caption, size, role, weight or the order of images; not with where the files lie.

        Names decide the order and the order decides the batches, so a renamed file can be another data set.
        """
        facts = [
            {**asdict(example), "path": "", "mask": _content(example.mask), "reference": _content(example.reference)}
            for example in self.examples
        ]
        return digest(facts)


def build_dataset(
    sets: Sequence[DatasetConfig], data: DataConfig, step: int, seed: int, index: FileIndex, progress: Progress
) -> Dataset:
    """Read the sets. `step` is the family's bucket step. Raises DataError or ConfigError before anything is encoded."""
    for config in sets:
        parse_colour(config.background)
    buckets = Buckets(
        method=data.buckets,
        resolution=data.resolution,
        step=data.bucket_step or step,
        min_side=data.min_side,
        max_side=data.max_side,
        upscale=data.upscale,
    )
    found = [(config, image) for config in sets for image in find_images(config)]
    facts = index.look_up([image.path for _, image in found], progress)
    examples = [
        Example(
            path=image.path,
            digest=facts[image.path].digest,
            captions=(image.caption,),
            geometry=buckets.geometry(facts[image.path].size),
            repeats=config.repeats,
            weight=config.weight,
            caption_dropout=config.caption_dropout,
            role=config.role,
            mask=image.mask,
            reference=image.reference,
            may_flip=config.flip,
            background=config.background,
        )
        for config, image in found
    ]
    return Dataset(examples=tuple(_with_held_out(examples, data.held_out_share, seed)))


def _with_held_out(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Set a seeded share of the training images aside. Raises DataError if that leaves nothing to train on."""
    training = [i for i, example in enumerate(examples) if example.role == "train"]
    count = round(share * len(training))
    if share and count in (0, len(training)):
        raise DataError(
            f"data.held_out_share = {share} of {len(training)} images is {count}: use more images or another share"
        )
    chosen = {training[i] for i in permutation(len(training), seed, "held out")[:count]}
    return [_held_out(example) if i in chosen else example for i, example in enumerate(examples)]


def _content(path: Path | None) -> str:
    """Digest of a file; "" for none."""
    return file_digest(path) if path else ""


def _held_out(example: Example) -> Example:
    from dataclasses import replace

    return replace(example, role="held_out", may_flip=False, caption_dropout=0.0)


def _per_bucket(dataset: Dataset) -> Counter[Size]:
    """{bucket: images seen per epoch}."""
    counts: Counter[Size] = Counter()
    for example in dataset.training:
        counts[example.geometry.target] += example.repeats
    return counts


def epochs_report(dataset: Dataset, batch_size: int, accumulation: int, steps: int) -> str:
    """How steps and epochs relate, in words."""
    per_bucket = _per_bucket(dataset)
    batches = sum(ceil(count / batch_size) for count in per_bucket.values())
    seen = sum(per_bucket.values())
    return (
        f"seen per epoch: {seen} images in {batches} batches = {ceil(batches / accumulation)} steps\n"
        f"{steps} steps are {steps * accumulation / batches:.1f} epochs"
    )


def report(dataset: Dataset) -> str:
    """What each image became, in words."""
    training, per_bucket = dataset.training, _per_bucket(dataset)
    roles = Counter(example.role for example in dataset.examples)
    lines = [
        ", ".join(f"{count} {role.replace('_', ' ')}" for role, count in sorted(roles.items(), reverse=True))
        + " images"
    ]
    for size, count in sorted(per_bucket.items()):
        lines.append(f"  bucket {size[0]} x {size[1]}: {count} per epoch")
    enlarged = [e for e in training if e.geometry.resized[0] > e.geometry.original[0]]
    if enlarged:
        names = ", ".join(example.path.name for example in enlarged[:5])
        lines.append(
            f"{len(enlarged)} images are smaller than their bucket and were enlarged: {names}{' …' if len(enlarged) > 5 else ''}"
        )
    return "\n".join(lines)
