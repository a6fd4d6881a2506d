"""Building a dataset: from folders of images to examples with caption, bucket, role and weight."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from ...config.run import DataConfig, DatasetConfig
from ...config.toml import digest
from ...errors import ConfigError, DataError, problem_list, reads, some
from ...seeding import permutation, uniform
from ...types import (
    ALWAYS,
    Example,
    Geometry,
    Json,
    Presence,
    PreserveRule,
    Progress,
    Record,
    SliderRule,
    named_references,
)
from ..images.faces import NONE, check_detector
from ..images.index import FileFacts, FileIndex
from ..images.load import file_digest, parse_colour
from ..images.masks import mask_notes
from .buckets import Buckets
from .captions import class_caption, plain, texts_of, variants, warmup_of
from .leftovers import unused_twins
from .placement import buckets_of, image_variants, placements, stretched, variant_count, why_left_out
from .scan import ImageFile, ScannedFolder, folders_of, scan

HELD_OUT = "held_out"
"""Role of an example that is not trained on, as caches and digests have always had it; "validation" in the options."""
LATER: Json = {
    "variants": (),
    "caption_dropout_every": 0,
    "warmup": None,
    "presence": None,
    "timestep_range": None,
    "strength": 1.0,
    "slider": None,
}
"""{field of an example that early versions did not have: its default}, with which a digest stays what it was."""
COURSE = ("start_step", "end_step", "start_epoch", "end_epoch")
MOST_STRETCHED = 0.05
"""Images whose proportions crop = "none" changes by more than this share are named in the report."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The examples of a run, in the order that decides the batches, and what the user should know about them."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about the sets and cannot be seen from the examples."""
    about: tuple[str, ...] = ()
    """What is as it should be and worth a line in the report, such as where captions come from."""
    asked_empty: frozenset[Path] = frozenset()
    """Images that are trained with the empty prompt because the options ask for it."""
    unreadable: tuple[tuple[Path, str], ...] = ()
    """(file, reason) of images that cannot be used and were left out."""
    fingerprints: Mapping[Path, tuple[str, str]] = field(default_factory=dict)
    """{image: (perceptual hash, mean colours)}, as in `probe.ImageProbe`. The hash may be ""."""

    @property
    def training(self) -> list[Example]:
        """The examples that are trained on, including those of regularisation sets."""
        return [example for example in self.examples if example.role != HELD_OUT]

    @property
    def trained_images(self) -> int:
        """Number of images that a LoRA is trained for. One at several sizes counts once, those of regularisation sets do not."""
        return len({example.digest for example in self.examples if example.role == "train"})

    @property
    def learnt_files(self) -> list[Path]:
        """The images of what is learnt, each once; those of a class are none of them."""
        return list(dict.fromkeys(example.path for example in self.training if example.role == "train"))

    @property
    def held_out(self) -> list[Example]:
        """The examples that only the validation loss is measured on."""
        return [example for example in self.examples if example.role == HELD_OUT]

    @property
    def captions(self) -> list[str]:
        """Every text that can occur, including the empty prompt, sorted."""
        return sorted({"", *(text for example in self.examples for text in texts_of(example))})

    @property
    def preserves(self) -> bool:
        """Whether captions without the trigger are held to the base's prediction."""
        return any(example.preserve is not None and example.preserve.weight for example in self.examples)

    @cached_property
    def digest(self) -> str:
        """A digest that changes with any pixel, caption, size, role, weight or the order of the images.

        It does not depend on the folder. File names decide the order and the order decides the batches, so renaming a file
        can change it.
        """
        return digest([_facts(example) for example in self.examples])


def trigger_words(sets: Sequence[DatasetConfig]) -> str:
    """The trigger words that a LoRA file names, separated by commas; "" where no set has one."""
    return ", ".join(dict.fromkeys(one.trigger for one in sets if one.trigger))


@reads(lambda sets, *_, **__: f"the dataset in {some([one.folder for one in sets])}", DataError)
def build_dataset(
    sets: Sequence[DatasetConfig], data: DataConfig, step: int, seed: int, index: FileIndex, progress: Progress
) -> Dataset:
    """Read and check all sets. `step` is the family's bucket step in pixels. Raises DataError or ConfigError."""
    for config in sets:
        parse_colour(config.background)
        if config.crop == "face":
            check_detector()
    buckets = [buckets_of(config, data, step) for config in sets]
    read = folders_of(sets)
    folders = [scan(config, read) for config in sets]
    twins = {path for folder in folders for image in folder.images for path in image.twins}
    every = {image.path for folder in folders for image in folder.images} | twins
    survey = index.survey(
        every,
        progress,
        _images_of(sets, folders, crop="saliency"),
        _images_of(sets, folders, crop="face"),
        _images_of(sets, folders, masks="alpha"),
    )
    unreadable = _unusable(folders, survey.problems)
    examples: list[Example] = []
    notes = [*(note for folder in folders for note in folder.notes), *unused_twins(sets, twins)]
    for config, folder, sizes in zip(sets, folders, buckets, strict=True):
        readable = [image for image in folder.images if image.path not in unreadable]
        set_examples, set_notes = _examples(config, readable, sizes, survey.facts, seed)
        examples += set_examples
        pairs = [(image.path, image.mask) for image in readable if image.mask]
        notes += set_notes + mask_notes(pairs, survey.facts, config.folder)
    if not any(example.role == "train" for example in examples):
        raise DataError(problem_list(["no image is left to train on", *notes, *unreadable.values()]))
    return Dataset(
        examples=tuple(_with_held_out(examples, data.validation_split, seed)),
        notes=tuple(notes),
        about=(
            *(line for folder in folders for line in folder.about),
            *_about_variants(sets),
            *_about_course(sets, folders),
        ),
        asked_empty=frozenset().union(*(folder.asked_empty for folder in folders)),
        unreadable=tuple(unreadable.items()),
        fingerprints={path: (known.fingerprint, known.colours) for path, known in survey.facts.items()},
    )


def _images_of(sets: Sequence[DatasetConfig], folders: Sequence[ScannedFolder], **option: str) -> set[Path]:
    """The images of the sets with this value of an option."""
    [(name, value)] = option.items()
    each = zip(sets, folders, strict=True)
    return {image.path for config, folder in each if getattr(config, name) == value for image in folder.images}


def _unusable(folders: Sequence[ScannedFolder], problems: Mapping[Path, str]) -> dict[Path, str]:
    """{image: why it cannot be used}, for its own sake or that of its mask or a reference image."""
    found: dict[Path, str] = {}
    for image in (image for folder in folders for image in folder.images):
        broken = next((path for path in (image.path, *image.twins) if path in problems), None)
        if broken is not None:
            found[image.path] = problems[broken] if broken == image.path else f"{image.path}: {problems[broken]}"
    return found


def _examples(
    config: DatasetConfig,
    images: Sequence[ImageFile],
    sizes: Sequence[Buckets],
    facts: Mapping[Path, FileFacts],
    seed: int,
) -> tuple[list[Example], list[str]]:
    """Returns (the examples of one set, notes about it)."""
    examples: list[Example] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    drawn: list[str] = []
    fitting = [image for image in images if not why_left_out(facts[image.path].size, config)]
    for image in images:
        if reason := why_left_out((known := facts[image.path]).size, config):
            left_out[reason].append(f"{image.path.name} ({known.width} x {known.height})")
    for image in _drawn_images(fitting, config, facts, seed):
        known = facts[image.path]
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
                preserve=_preserve_rule(config),
                strength=config.strength,
                slider=_slider_rule(config),
                mask=image.mask,
                references=image.references,
                may_flip=config.flip,
                background=config.background,
                live=live,
                **_only_in_training(image, known, config, geometry, seed),
            )
            for geometry in placements(known, config, sizes, seed)
        ]
    _check_preserve(config, examples)
    notes = _notes(config, examples, left_out, drawn)
    faceless = [one.path.name for one in fitting if config.crop == "face" and facts[one.path].face == NONE]
    if faceless:
        notes.append(
            f"{config.folder}: no face was found in {len(faceless)} images, whose upper middle stays: {some(faceless)}"
        )
    return examples, notes


def _preserve_rule(config: DatasetConfig) -> PreserveRule | None:
    """What stands for the class in a set, and how strongly its images are held to the base's prediction."""
    if config.role == "regularisation" or not (config.trigger or config.class_prompt):
        return None
    words = {"trigger": config.trigger, "class_prompt": config.class_prompt}
    return PreserveRule(**words, weight=config.preserves, share=config.teacher_share)


def _slider_rule(config: DatasetConfig) -> SliderRule | None:
    """The slider of prompts that a set trains."""
    if not config.slider_positive:
        return None
    return SliderRule(
        positive=config.slider_positive.strip(), negative=config.slider_negative.strip(), scale=config.slider_scale
    )


def _check_preserve(config: DatasetConfig, examples: Sequence[Example]) -> None:
    """Raises ConfigError where no caption of a set can be held: the class prompt would be trained on the images, or nothing says the class."""
    if not config.preserves or not examples:
        return
    if not any(class_caption(example, caption) is not None for example in examples for caption in example.captions):
        words = f"trigger = {config.trigger!r}, class_prompt = {config.class_prompt!r}"
        raise ConfigError(
            f"dataset.teacher = 'base' of {config.folder}: no caption has the trigger, so there is nothing to hold to the base ({words}); set dataset.trigger, or a dataset.class_prompt that is no caption"
        )


def _only_in_training(
    image: ImageFile, known: FileFacts, config: DatasetConfig, geometry: Geometry, seed: int
) -> Record:
    """The fields of an example that say how it changes in the course of a run. Validation images never do."""
    if config.role == "validation":
        return {}
    return {
        "variants": image_variants(known, config, geometry, seed),
        "caption_dropout_every": config.caption_dropout_every_n_epochs,
        "warmup": warmup_of(image.forms, config, seed),
        "presence": _presence(config),
        "timestep_range": config.timestep_range if config.timestep_range != (0.0, 1.0) else None,
    }


def _presence(config: DatasetConfig) -> Presence | None:
    """When in a run a set is trained; None: always and whole."""
    presence = Presence(**{one.name: getattr(config, one.name) for one in fields(Presence)})
    return None if presence == ALWAYS else presence


def _drawn_images(
    images: Sequence[ImageFile], config: DatasetConfig, facts: Mapping[Path, FileFacts], seed: int
) -> list[ImageFile]:
    """At most `max_num_samples` images, drawn by the seed and their content, in their order."""
    if not config.max_num_samples or len(images) <= config.max_num_samples:
        return list(images)
    ranked = sorted(images, key=lambda image: uniform(seed, "max_num_samples", facts[image.path].digest))
    chosen = {image.path for image in ranked[: config.max_num_samples]}
    return [image for image in images if image.path in chosen]


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
        notes.append(
            f"{config.folder}: a new caption is drawn and encoded each time an image is used (caption_variants = 0)"
        )
    if config.preserves and examples:
        first = next(text for e in examples for c in e.captions if (text := class_caption(e, c)) is not None)
        often = "" if config.teacher_share == 1 else f" at {config.teacher_share:.0%} of the uses"
        notes.append(
            f"{config.folder}: captions without the trigger, such as {first!r}, are held to what the base predicts, by weight {config.preserves:g}{often}; that takes one more forward pass without gradient and one more pass forward and backward"
        )
    distorted = [e.path.name for e in examples if stretched(e.geometry) > MOST_STRETCHED]
    if distorted and config.crop == "none":
        most = max(stretched(example.geometry) for example in examples)
        notes.append(
            f"{config.folder}: {len(distorted)} images are stretched to their bucket, by up to {most:.0%}: {some(distorted)}"
        )
    return notes


def _about_variants(sets: Sequence[DatasetConfig]) -> list[str]:
    """One line for each set whose images are trained in several variants."""
    counts = [(one.folder, variant_count(one)) for one in sets if one.role != "validation"]
    line = "variants of each image are cached, itself among them; one is drawn each time it is used"
    return [f"{folder}: {count} {line} (image_variants)" for folder, count in counts if count > 1]


def _about_course(sets: Sequence[DatasetConfig], folders: Sequence[ScannedFolder]) -> list[str]:
    """One line for each set that is not trained whole and always."""
    lines = []
    for config, folder in zip(sets, folders, strict=True):
        said = []
        if config.max_num_samples and len(folder.images) > config.max_num_samples:
            said.append(f"{config.max_num_samples} of {len(folder.images)} images, drawn by the seed (max_num_samples)")
        if config.probability < 1:
            said.append(f"{config.probability:.0%} of its uses in each epoch (probability)")
        said += [f"{name} = {value}" for name in COURSE if (value := getattr(config, name))]
        if said:
            lines.append(f"{config.folder}: {', '.join(said)}")
    return lines


def _with_held_out(examples: list[Example], share: float, seed: int) -> list[Example]:
    """The examples with a seeded share of the training images held out, at all resolutions and in every set that has them.

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


def _facts(example: Example) -> Json:
    """Everything that identifies an example, with digests of files in place of their paths."""
    data: Json = {**asdict(example), "path": "", "mask": _content(example.mask), "reference": ""}
    del data["references"]
    for name in [name for name, before in LATER.items() if getattr(example, name) == before]:
        del data[name]
    if example.preserve is None or not example.preserve.weight:  # nothing is trained by it
        del data["preserve"]
    return {**data, **named_references([_content(path) for path in example.references])}


def _content(path: Path | None) -> str:
    """Returns the sha256 of a file; "" for None."""
    return file_digest(path) if path else ""


def _held_out(example: Example) -> Example:
    """The example as the validation loss uses it: always upright, with its first caption in its plain form."""
    return replace(
        example,
        role=HELD_OUT,
        may_flip=False,
        caption_dropout=0.0,
        captions=example.captions[:1],
        live=None,
        variants=(),
        preserve=replace(example.preserve, weight=0.0) if example.preserve is not None else None,
        caption_dropout_every=0,
        warmup=None,
        strength=1.0,
        slider=None,
        presence=None,
        timestep_range=None,
    )
