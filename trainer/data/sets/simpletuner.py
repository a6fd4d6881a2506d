"""Reads SimpleTuner's multidatabackend.json. Its repeats count the extra passes (0 = once per epoch), ours count all passes."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from ...errors import ConfigError
from ...types import Json
from .checks import ignored_options, number_of, switch_of, text_of, whole_of

DANGEROUS = ("delete_unwanted_images", "delete_problematic_images", "delete_nsfw_images")
"""Options that would delete images. They are refused."""
NOT_NEEDED = {
    "cache_dir", "cache_dir_vae", "write_batch_size", "metadata_update_interval", "skip_file_discovery", "default",
    "text_embeds", "image_embeds", "preserve_data_backend_cache", "vae_cache_clear_each_epoch", "vae_cache_ondemand",
    "hash_filenames", "text_encoder_batch_size", "source_dataset_id",
}  # fmt: skip
"""Options about the location and filling of caches, which have no effect here and are not reported."""
INSTEAD = {
    "caption_filter_list": "edit the captions",
    "max_upscale_threshold": "use minimum_image_size",
    "timestep_sampling_offset": "use objective.logit_mean",
    "train_batch_size": "set training.batch_size",
    "vae_cache_disable": 'set memory.cache = "online" to keep neither latents nor texts, for all datasets',
    "video": "only images are trained",
    "conditioning": "make the reference images beforehand and name their folder",
}
COURSE = ("max_num_samples", "start_step", "start_epoch", "end_step", "end_epoch")
"""Options that say when and how many images of a set are trained; they are called the same here."""
KNOWN = {
    "id", "type", "dataset_type", "disabled", "disable", "instance_data_dir", "caption_strategy", "instance_prompt",
    "prepend_instance_prompt", "only_instance_prompt", "disable_multiline_split", "caption_shuffle", "metadata_backend",
    "parquet", "repeats", "is_regularisation_data", "is_regularization_data", "crop", "crop_aspect", "crop_style",
    "crop_aspect_buckets", "resolution", "resolution_type", "minimum_image_size", "maximum_image_size",
    "target_downsample_size", "minimum_aspect_ratio", "maximum_aspect_ratio", *COURSE, "probability", "csv_file", "csv_caption_column", "csv_url_column", "csv_cache_dir", "dataset_name", "huggingface", "split", "streaming", "auto_load", "revision", "conditioning_data", "conditioning_type", "slider_strength", *DANGEROUS, *NOT_NEEDED,
}  # fmt: skip
ELSEWHERE = {
    "aws": "fetch the images first (aws s3 sync s3://BUCKET/PREFIX FOLDER) and write type = 'local' with that folder",
}
"""{type that is not read here: the remedy}."""
SPLITS = {"comma": ",", "space": " ", "period": "."}
STYLES = {"random": "random", "center": "center", "centre": "center", "corner": "corner", "face": "face"}
CAPTIONS = {
    "filename": "filename",
    "textfile": "sidecar",
    "csv": "metadata",
    "instanceprompt": "fixed",
    "parquet": "metadata",
    "huggingface": "metadata",
}
PARQUET = {
    "path",
    "caption_column",
    "filename_column",
    "width_column",
    "height_column",
    "identifier_includes_extension",
}
CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds")


def simpletuner_sets(data: Sequence[Mapping[str, object]]) -> tuple[list[Json], list[str]]:
    """Returns (options of our sets, notes). Raises ConfigError for options that delete images, and for what cannot be trained."""
    sets: list[Json] = []
    notes: list[str] = []
    helpers = {
        name: entry for entry in data if isinstance(name := entry.get("id"), str) and _kind(entry) == "conditioning"
    }
    for number, entry in enumerate(data, 1):
        where = f"{text_of(entry, 'id') or f'set {number}'}"
        try:
            dangerous = [name for name in DANGEROUS if entry.get(name)]
            if dangerous:
                raise ConfigError(
                    f"{dangerous[0]} = {entry[dangerous[0]]!r}: images are never deleted here; remove this option"
                )
            if switch_of(entry, "disabled") or switch_of(entry, "disable"):
                notes.append(f"{where}: left out because it is disabled")
            elif _kind(entry) not in (*CACHES, "conditioning"):
                sets.append(_set(entry, helpers, notes, where))
                notes += ignored_options(entry, INSTEAD, KNOWN, where)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return sets, notes


def _kind(entry: Mapping[str, object]) -> str:
    return text_of(entry, "dataset_type", "image")


def _set(
    entry: Mapping[str, object], helpers: Mapping[str, Mapping[str, object]], notes: list[str], where: str
) -> Json:
    for name, known in (("type", ("local", "csv", "huggingface")), ("dataset_type", ("image", "eval"))):
        value = text_of(entry, name, known[0])
        if value not in known:
            raise ConfigError(
                f"{name} = {value!r}: only {', '.join(known[:-1])} and {known[-1]} can be read; {ELSEWHERE.get(value, 'copy the images to a folder')}"
            )
    regularisation = switch_of(entry, "is_regularisation_data") or switch_of(entry, "is_regularization_data")
    role = "regularisation" if regularisation else "train"
    return {
        "folder": text_of(entry, "instance_data_dir"),
        "recursive": True,
        "role": "validation" if _kind(entry) == "eval" else role,
        "teacher": "base" if regularisation else "images",
        "repeats": whole_of(entry, "repeats") + 1,
        "strength": number_of(entry, "slider_strength", 1.0, least=-10) or 1.0,
        **_captions(entry, notes, where),
        **_sizes(entry, notes, where),
        **_pairs(entry, helpers, where, notes),
        **_listed(entry, notes, where),
        **_hub(entry, notes, where),
        **_course(entry, notes, where),
    }


def _listed(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    """A set of type csv: a table of images and captions. Theirs may name addresses; here they have to be files below csv_cache_dir."""
    if text_of(entry, "type", "local") != "csv":
        return {}
    table = text_of(entry, "csv_file")
    if not table:
        raise ConfigError("type = 'csv' needs csv_file, the table of images and captions")
    notes.append(f"{where}: type = 'csv' reads the files that {table} names; addresses are not downloaded")
    return {
        "folder": text_of(entry, "csv_cache_dir") or text_of(entry, "instance_data_dir") or str(PurePath(table).parent),
        "recursive": False,
        "captions": "metadata",
        "metadata": table,
        "only_listed": True,
        "caption_field": text_of(entry, "csv_caption_column"),
        "file_field": text_of(entry, "csv_url_column"),
    }


def _hub(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    """A set of type huggingface: a dataset of the hub that was fetched, in the folder that dataset_name names."""
    if text_of(entry, "type", "local") != "huggingface":
        return {}
    name, options = text_of(entry, "dataset_name"), entry.get("huggingface") or {}
    if not name or not isinstance(options, Mapping):
        raise ConfigError("type = 'huggingface' needs dataset_name, and a table as huggingface")
    notes.append(f"{where}: the hub is not asked; dataset_name = {name!r} is a folder, which hf download {name} --repo-type dataset --local-dir {name} makes")  # fmt: skip
    split = text_of(entry, "split", "train")
    if split != "train":
        notes.append(f"{where}: split = {split!r} is trained where it is the only one; of several it is train")
    known = {"image_column", "caption_column"}
    notes += ignored_options(options, {}, known, f"{where}, huggingface")
    return {
        "folder": name,
        "captions": "metadata",
        "file_field": text_of(options, "image_column"),
        "caption_field": text_of(options, "caption_column"),
    }


def _course(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    """When the set is trained, and how much of it. None and 0 mean the same there: no limit."""
    translated: Json = {name: whole_of(entry, name) for name in COURSE}
    share = number_of(entry, "probability", 1.0)
    if not 0 < share <= 1:
        notes.append(f"{where}: probability = {share:g} is ignored; use a number above 0, up to 1")
    elif share < 1:
        notes.append(
            f"{where}: probability = {share:g} is this share of the set's images in each epoch; there it is the set's weight among all sets"
        )
        translated["probability"] = share
    return translated


def _captions(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    strategy = text_of(entry, "caption_strategy", "filename")
    if strategy not in CAPTIONS:
        raise ConfigError(f"caption_strategy = {strategy!r}: use one of {', '.join(CAPTIONS)}")
    prompt = text_of(entry, "instance_prompt")
    only = switch_of(entry, "only_instance_prompt") or strategy == "instanceprompt"
    translated: Json = {
        "captions": "fixed" if only else CAPTIONS[strategy],
        "caption": prompt if only else "",
        "prefix": prompt if switch_of(entry, "prepend_instance_prompt") and not only else "",
        "caption_lines": "all" if switch_of(entry, "disable_multiline_split") or strategy != "textfile" else "each",
    }
    if strategy == "parquet" and not only:
        table = entry.get("parquet")
        if not isinstance(table, Mapping):
            raise ConfigError('caption_strategy = \'parquet\' needs a parquet table: {"path": …, "caption_column": …}')
        translated |= {
            "metadata": text_of(table, "path"),
            "caption_field": text_of(table, "caption_column"),
            "file_field": text_of(table, "filename_column"),
        }
        notes += ignored_options(table, {}, PARQUET, f"{where}, parquet")
    shuffle = entry.get("caption_shuffle") or {}
    if not isinstance(shuffle, Mapping):
        raise ConfigError(f'caption_shuffle = {shuffle!r}: use {{"enable": true, …}}')
    if switch_of(shuffle, "enable"):
        translated |= _shuffled(shuffle, notes, where)
    return translated


def _shuffled(shuffle: Mapping[str, object], notes: list[str], where: str) -> Json:
    split = text_of(shuffle, "split_on", "comma")
    if split not in SPLITS:
        raise ConfigError(f"caption_shuffle.split_on = {split!r}: use one of {', '.join(SPLITS)}")
    known = {"enable", "count", "split_on", "position_start", "include_original"}
    notes += ignored_options(shuffle, {"seed": "the run's seed decides"}, known, f"{where}, caption_shuffle")
    if not switch_of(shuffle, "include_original", default=True):
        notes.append(f"{where}: include_original = false is ignored; the caption as it was written is one of its forms")
    return {
        "shuffle_tags": True,
        "caption_variants": max(1, whole_of(shuffle, "count", 1)) + 1,
        "tag_separator": SPLITS[split],
        "keep_tokens": whole_of(shuffle, "position_start"),
    }


def _sizes(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    kind = text_of(entry, "resolution_type", "pixel_area")
    if kind not in ("pixel", "pixel_area", "area"):
        raise ConfigError(f"resolution_type = {kind!r}: use pixel, area or pixel_area")
    square = switch_of(entry, "crop") and text_of(entry, "crop_aspect", "square") == "square"
    translated: Json = {
        "buckets": "off" if square else "pixel" if kind == "pixel" else "pixel_area",
        "size_metric": "side" if square or kind == "pixel" else "area",
        "min_size": _pixels(entry, "minimum_image_size", kind),
        "min_aspect": number_of(entry, "minimum_aspect_ratio"),
        "max_aspect": number_of(entry, "maximum_aspect_ratio"),
        **_crop(entry, notes, where),
    }
    if entry.get("resolution") is not None:
        value = number_of(entry, "resolution")
        translated |= {"megapixels": [value]} if kind == "area" else {"resolutions": [round(value)]}
    largest, reduced = (_pixels(entry, name, kind) for name in ("maximum_image_size", "target_downsample_size"))
    if largest and reduced:
        translated |= {"max_size": largest, "downsample": min(reduced, largest)}
    elif largest or reduced:
        notes.append(
            f"{where}: maximum_image_size and target_downsample_size have an effect only together; images are resized to their bucket"
        )
    return translated


def _pixels(entry: Mapping[str, object], name: str, kind: str) -> int:
    """A size option as the side of a square in pixels. With resolution_type = 'area' it is given in megapixels."""
    value = number_of(entry, name)
    return round((value * 1e6) ** 0.5) if kind == "area" else round(value)


def _crop(entry: Mapping[str, object], notes: list[str], where: str) -> Json:
    if not switch_of(entry, "crop"):
        return {"crop": "none"}
    style = text_of(entry, "crop_style", "random")
    aspect = text_of(entry, "crop_aspect", "square")
    if style not in STYLES:
        notes.append(f"{where}: crop_style = {style!r} is interpreted as {STYLES.get(style, 'top')!r}")
    if style == "random":
        notes.append(f"{where}: a random crop is one position per image, drawn by the seed and cached")
    if aspect not in ("square", "preserve", "closest", "random"):
        raise ConfigError(f"crop_aspect = {aspect!r}: use square, preserve, closest or random")
    translated: Json = {"crop": STYLES.get(style, "top")}
    if aspect in ("closest", "random"):
        buckets = entry.get("crop_aspect_buckets")
        if not isinstance(buckets, list) or not buckets:
            raise ConfigError(f"crop_aspect = {aspect!r} needs crop_aspect_buckets, such as [1.0, 0.75, 1.33]")
        translated |= {"aspects": buckets, "aspect_choice": aspect}
    return translated


def _pairs(
    entry: Mapping[str, object], helpers: Mapping[str, Mapping[str, object]], where: str, notes: list[str]
) -> Json:
    """The folders of masks and reference images, which are entries of their own that `conditioning_data` names."""
    given = entry.get("conditioning_data") or []
    masks: list[str] = []
    references: list[str] = []
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str) or name not in helpers:
            raise ConfigError(f"conditioning_data = {name!r}: no entry of dataset_type 'conditioning' has that id")
        kind = text_of(helpers[name], "conditioning_type")
        folders = {"mask": masks, "reference_strict": references, "reference_loose": references}
        if kind not in folders:
            raise ConfigError(
                f"{name}: conditioning_type = {kind!r} cannot be trained here; mask and reference_strict can"
            )
        folders[kind].append(text_of(helpers[name], "instance_data_dir"))
    if len(masks) > 1:
        raise ConfigError(f"conditioning_data = {given!r}: one folder of masks per set can be trained")
    if len(references) > 1:
        notes.append(
            f"{where}: the reference images of all sets are used together (conditioning_multidataset_sampling = 'combined')"
        )
    return ({"masks": masks[0]} if masks else {}) | ({"references": references} if references else {})
