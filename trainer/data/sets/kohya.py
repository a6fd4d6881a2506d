"""Reads kohya's dataset TOML ([general], [[datasets]], [[datasets.subsets]]). num_repeats = 1 means once per epoch, as here."""

import math
from collections.abc import Mapping, Sequence

from ...errors import ConfigError
from ...types import Json
from . import musubi
from .checks import ignored_options, number_of, switch_of, text_of, whole_of

INSTEAD = {
    "batch_size": "set training.batch_size",
    "system_prompt": "set text.system_prompt",
    "validation_seed": "the run's seed decides",
    "validation_split": "set data.validation_split",
    "resize_interpolation": "images are resized by Lanczos",
    "max_token_length": "the text encoder decides",
    "skip_image_resolution": "use min_size",
    "conditioning_data_dir_2": "one folder of masks is read",
}
"""{option without a counterpart here: what to do instead}."""
COLOR_AUG = 16.0
"""Degrees: sd-scripts' color_aug shifts the hue by up to 8 of OpenCV's steps of two degrees."""
KOHYA_EXTENSIONS = ".caption,.txt"
"""kohya reads .caption where the file names no extension; .txt is read as well, since its command line usually says so."""
KNOWN = {
    "image_dir", "num_repeats", "recursive", "class_tokens", "is_reg", "shuffle_caption", "keep_tokens",
    "keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_separator", "caption_prefix",
    "caption_suffix", "caption_dropout_rate", "caption_dropout_every_n_epochs", "token_warmup_min", "token_warmup_step", "caption_tag_dropout_rate", "flip_aug", "color_aug", "face_crop_aug_range", "random_crop", "alpha_mask",
    "conditioning_data_dir", "metadata_file", "caption_extension", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso",
    "bucket_reso_steps", "bucket_no_upscale", "subsets", "cache_info",
    "custom_attributes", "network_multiplier",
}  # fmt: skip


def kohya_sets(data: Mapping[str, object]) -> tuple[list[Json], list[str]]:
    """Returns (options of our sets, notes). A subset's options override its dataset's, and these override those of [general].

    Raises ConfigError for invalid values.
    """
    sets: list[Json] = []
    notes: list[str] = []
    unknown = sorted(data.keys() - {"general", "datasets"})
    if unknown:
        notes.append(f"unknown tables are ignored: {',  '.join(unknown)}")
    general = _table(data.get("general", {}), "general")
    for number, dataset in enumerate(_tables(data["datasets"], "datasets"), 1):
        if not dataset.get("subsets"):
            sets.append(_without_subsets(general, dataset, notes, f"datasets {number}"))
        for inner, subset in enumerate(_tables(dataset.get("subsets", []), "datasets.subsets"), 1):
            options = {**general, **dataset, **subset}
            where = f"datasets {number}, subset {inner}"
            try:
                sets.append(_set(options, notes, where))
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
            notes += ignored_options(options, INSTEAD, KNOWN, where)
    return sets, list(dict.fromkeys(notes))


def _without_subsets(
    general: Mapping[str, object], dataset: Mapping[str, object], notes: list[str], where: str
) -> Json:
    """The set of a [[datasets]] table that has no subsets: musubi-tuner's. Raises ConfigError for any other."""
    try:
        if not musubi.is_set(dataset):
            instead = "image_dir belongs below it" if "image_dir" in dataset else "it names no images"
            raise ConfigError(f"it has no subsets, {instead}: write [[datasets.subsets]] with image_dir, or remove it")
        options = {**general, **dataset}
        translated = musubi.translate(options, _area(options.get("resolution")), notes, where)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    notes += ignored_options(options, musubi.INSTEAD, musubi.KNOWN, where)
    return translated


def _table(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} = {value!r} is not a table: write [{name}]")
    return value


def _tables(value: object, name: str) -> list[Mapping[str, object]]:
    if not isinstance(value, list):
        raise ConfigError(f"{name} = {value!r} is not a list of tables: write [[{name}]]")
    return [_table(entry, name) for entry in value]


def _set(options: Mapping[str, object], notes: list[str], where: str) -> Json:
    wildcards = switch_of(options, "enable_wildcard")
    metadata = text_of(options, "metadata_file")
    masks = "alpha" if switch_of(options, "alpha_mask") else ""
    by_base = _by_base(options, notes, where)
    translated: Json = {
        "folder": text_of(options, "image_dir"),
        "recursive": switch_of(options, "recursive"),
        "repeats": whole_of(options, "num_repeats", 1),
        "role": "regularisation" if switch_of(options, "is_reg") or by_base else "train",
        "teacher": "base" if by_base else "images",
        "strength": number_of(options, "network_multiplier", 1.0, least=-10),
        "captions": "metadata" if metadata else "sidecar",
        "caption": text_of(options, "class_tokens"),
        "caption_extension": text_of(options, "caption_extension") or KOHYA_EXTENSIONS,
        "metadata": metadata,
        "caption_lines": "each" if wildcards else "first",
        "wildcards": wildcards,
        "prefix": text_of(options, "caption_prefix"),
        "suffix": text_of(options, "caption_suffix"),
        "caption_dropout": number_of(options, "caption_dropout_rate"),
        "flip": switch_of(options, "flip_aug"),
        "random_hue": COLOR_AUG if switch_of(options, "color_aug") else 0.0,
        "masks": text_of(options, "conditioning_data_dir") or masks,
        "crop": _crop(options, notes, where),
        **_tags(options, notes, where),
        **_course(options, notes, where),
        **_sizes(options, notes, where),
    }
    if translated["random_hue"]:
        notes.append(
            f"{where}: color_aug turns hues by up to {COLOR_AUG:g} degrees, in variants that are cached; there a third of the visits has another hue or gamma"
        )
    if translated["crop"] == "random":
        notes.append(f"{where}: random_crop is one position per image, drawn by the seed and cached")
    return translated


def _by_base(options: Mapping[str, object], notes: list[str], where: str) -> bool:
    """Whether differential output preservation is requested; kohya has it as a custom attribute."""
    given = _table(options.get("custom_attributes", {}), "custom_attributes")
    notes += ignored_options(given, {}, {"diff_output_preservation"}, f"{where}, custom_attributes")
    return switch_of(given, "diff_output_preservation")


def _tags(options: Mapping[str, object], notes: list[str], where: str) -> Json:
    """The options of tag shuffling. kohya counts the tags of the prefix in keep_tokens; here the prefix never moves and is not counted."""
    separator = text_of(options, "caption_separator", ",")
    keep = whole_of(options, "keep_tokens")
    shuffle = switch_of(options, "shuffle_caption")
    prefix = text_of(options, "caption_prefix")
    inside = prefix.count(separator) if separator else 0
    if shuffle and inside > keep:
        notes.append(f"{where}: the tags of caption_prefix are not shuffled, they stay in front")
    return {
        "shuffle_tags": shuffle,
        "keep_tokens": max(0, keep - inside),
        "keep_separator": text_of(options, "keep_tokens_separator"),
        "tag_separator": separator,
        "secondary_separator": text_of(options, "secondary_separator"),
        "tag_dropout": number_of(options, "caption_tag_dropout_rate"),
    }


def _crop(options: Mapping[str, object], notes: list[str], where: str) -> str:
    """The place of the crop. sd-scripts also varies how much of an image round its face is shown, by the range."""
    if options.get("face_crop_aug_range"):
        notes.append(
            f"{where}: face_crop_aug_range is interpreted as crop = 'face'; the range is ignored, the bucket decides how much is shown"
        )
        return "face"
    return "random" if switch_of(options, "random_crop") else "center"


def _course(options: Mapping[str, object], notes: list[str], where: str) -> Json:
    """The options that depend on the place in the run. Below 1, token_warmup_step is a share of the run, which a dataset file does not know."""
    steps, every = number_of(options, "token_warmup_step"), whole_of(options, "caption_dropout_every_n_epochs")
    if every == 1:
        notes.append(f"{where}: caption_dropout_every_n_epochs = 1 is ignored; no caption would be trained")
    if 0 < steps < 1:
        notes.append(f"{where}: token_warmup_step = {steps:g} is ignored; write it as a number of steps")
        steps = 0
    least = {"token_warmup_min": whole_of(options, "token_warmup_min", 1)} if steps >= 1 else {}
    return {"token_warmup_step": int(steps), "caption_dropout_every_n_epochs": every if every > 1 else 0, **least}


def _sizes(options: Mapping[str, object], notes: list[str], where: str) -> Json:
    translated: Json = {"bucket_step": whole_of(options, "bucket_reso_steps")}
    area = _area(options.get("resolution"))
    if area is not None:
        side = math.sqrt(area[0] * area[1])
        translated["resolutions"] = [round(side)]
        if area[0] != area[1]:
            notes.append(
                f"{where}: resolution = {list(area)} is interpreted as its area, a square of {side:.0f} pixels"
            )
    if not switch_of(options, "enable_bucket"):
        return {**translated, "buckets": "off"}
    return {
        **translated,
        "buckets": "kohya",
        "min_side": whole_of(options, "min_bucket_reso", 256),
        "max_side": whole_of(options, "max_bucket_reso", 1024),
        "upscale": not switch_of(options, "bucket_no_upscale"),
    }


def _area(value: object) -> tuple[int, int] | None:
    """Returns (width, height) of kohya's resolution, which may be 512, [512, 768] or "512,768"; None if it is not given."""
    if value is None:
        return None
    parts: Sequence[object] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    try:
        sides = [int(part) for part in parts if isinstance(part, int | str) and not isinstance(part, bool)]
    except ValueError:
        sides = []
    if len(sides) != len(parts) or len(sides) not in (1, 2) or not all(16 <= side < 100_000 for side in sides):
        raise ConfigError(f"resolution = {value!r}: use one number of pixels, or two")
    return sides[0], sides[-1]
