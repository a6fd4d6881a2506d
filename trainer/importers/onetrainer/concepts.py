"""OneTrainer's concepts, which are its datasets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.sets.checks import Surroundings
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..translation import DatasetTable, Translation


def is_concepts(data: Any) -> bool:
    """Whether a file holds a list of concepts."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(one, Mapping) and "path" in one and ("image" in one or "text" in one) for one in data)
    )


def translate_concepts(data: Sequence[Record], around: Surroundings) -> Translation:
    """A list of concepts alone."""
    made = Translation("onetrainer", ("config",), {})
    add_concepts(made, data, around)
    return made


def concepts(made: Translation, around: Surroundings) -> None:
    """Set the datasets and what holds for all of them."""
    sizes = [values.sides("resolution", one) for one in made.text("resolution", "512").split(",")]
    uneven = any(width != height for width, height in sizes)
    made.put(
        "dataset.resolutions",
        [round((w * h) ** 0.5) for w, h in sizes],
        "resolution",
        nearly="their areas are taken" if uneven else "",
    )
    made.put("dataset.buckets", "pixel_area" if made.on("aspect_ratio_bucketing", True) else "off", "aspect_ratio_bucketing",
             nearly="a fixed list of shapes there" if made.on("aspect_ratio_bucketing", True) else "")  # fmt: skip
    if not made.on("latent_caching", True):
        made.put("memory.cache", "online", "latent_caching")
    made.say("exact", "latent_caching", ours="memory.cache")
    if made.on("masked_training"):
        made.put(
            "objective.masked_loss",
            "normalised" if made.on("normalize_masked_area_loss") else "plain",
            "normalize_masked_area_loss",
        )
        for name in ("unmasked_probability", "unmasked_weight"):
            made.put(f"objective.{name}", made.number(name, 0.1), name)
        made.say(
            "none",
            "masked_training",
            note="put the masks (NAME-masklabel.png) into a folder of their own and name it as dataset.masks",
        )
    made.say(
        "needless",
        "masked_training",
        "unmasked_weight",
        "unmasked_probability",
        "normalize_masked_area_loss",
        note="masked_training is off",
    )
    concepts = made.get("concepts")
    place = made.text("concept_file_name", "training_concepts/concepts.json")
    if concepts is None:
        path = around.find(place)
        if path is None:
            made.say("none", "concept_file_name", note=f"{place} is not there: import from OneTrainer's folder")
            made.notes.append(
                f"dataset: {place} is not there; write its folders as [[dataset]] tables, or import again where it is"
            )
            return
        try:
            concepts = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"concept_file_name = {place!r} cannot be read: {error}") from error
        around = around.at(path.parent)
    made.say("exact", "concepts", "concept_file_name", ours="dataset")
    add_concepts(made, concepts, around)


def add_concepts(made: Translation, concepts: Sequence[Record], around: Surroundings) -> None:
    """Write a [[dataset]] table for each concept that is enabled."""
    for number, concept in enumerate(concepts, 1):
        if not values.is_on(concept.get("enabled", True)):
            made.notes.append(f"concept {number}: left out because it is not enabled")
            continue
        options = {name: value for name, value in concept.items() if not isinstance(value, Mapping)}
        for part in ("image", "text"):
            options |= {f"{part}.{name}": value for name, value in (concept.get(part) or {}).items()}
        inner = Translation("onetrainer", ("concept",), options)
        _concept(inner)
        inner.rest()
        table = DatasetTable(options=inner.for_datasets)
        table.comments = {name: inner.comments.get(f"dataset.{name}", "") for name in table.options}
        place = str(table.options.get("folder", ""))
        found = around.find(place) if place else None
        if found is not None and not Path(place).exists():
            table.options["folder"] = str(found)
        made.inner += inner.taken.values() if not made.datasets else []
        made.datasets.append(table)


def _concept(inner: Translation) -> None:
    inner.put("dataset.folder", inner.text("path"), "path")
    role = {"VALIDATION": "validation", "PRIOR_PREDICTION": "regularisation"}.get(
        inner.text("type", "STANDARD"), "train"
    )
    if role != "train":
        inner.put("dataset.role", role, "type")
    if role == "regularisation":
        inner.put("dataset.teacher", "base", why="type PRIOR_PREDICTION")
    inner.say("exact", "type", "enabled", ours="dataset.role")
    balancing = inner.number("balancing", 1.0)
    if inner.text("balancing_strategy", "REPEATS") == "REPEATS":
        whole = max(1, round(balancing))
        inner.put(
            "dataset.repeats", whole, "balancing", "balancing_strategy", nearly="" if whole == balancing else "rounded"
        )
    else:
        inner.say("none", "balancing", "balancing_strategy", note="every image of the folder is drawn here")
    source = inner.text("text.prompt_source", "sample")
    if source == "filename":
        inner.put("dataset.captions", "filename", "text.prompt_source")
    else:
        inner.put(
            "dataset.captions",
            "sidecar",
            "text.prompt_source",
            nearly="" if source == "sample" else "captions of one file for all: write them as caption",
        )
        inner.put("dataset.caption_lines", "each", why="each line is a caption there")
    jitter = inner.on("image.enable_crop_jitter", True)
    inner.put(
        "dataset.crop",
        "random" if jitter else "center",
        "image.enable_crop_jitter",
        nearly="one place per variant of an image here" if jitter else "",
    )
    if inner.on("image.enable_random_flip"):
        inner.put(
            "dataset.flip",
            True,
            "image.enable_random_flip",
            nearly="both images are trained here, one of them at a time there",
        )
    inner.say("exact", "image.enable_random_flip", ours="dataset.flip")
    _variants(inner)
    if inner.on("image.enable_resolution_override"):
        sizes = [
            values.sides("resolution_override", one)
            for one in inner.text("image.resolution_override", "512").split(",")
        ]
        inner.put(
            "dataset.resolutions",
            [round((w * h) ** 0.5) for w, h in sizes],
            "image.resolution_override",
            "image.enable_resolution_override",
        )
    inner.say("needless", "image.enable_resolution_override", "image.resolution_override", note="it is off")
    if inner.on("text.enable_tag_shuffling"):
        inner.put("dataset.shuffle_tags", True, "text.enable_tag_shuffling")
        inner.put("dataset.keep_tokens", inner.whole("text.keep_tags_count", 1), "text.keep_tags_count")
        inner.put(
            "dataset.tag_separator", str(inner.get("text.tag_delimiter", ",")).strip() or " ", "text.tag_delimiter"
        )
    inner.say(
        "needless",
        "text.enable_tag_shuffling",
        "text.keep_tags_count",
        "text.tag_delimiter",
        note="tags are not shuffled",
    )
    if inner.on("text.tag_dropout_enable") and inner.text("text.tag_dropout_mode", "FULL") == "RANDOM":
        inner.put(
            "dataset.tag_dropout",
            inner.number("text.tag_dropout_probability"),
            "text.tag_dropout_probability",
            "text.tag_dropout_enable",
            "text.tag_dropout_mode",
        )
    unlike = inner.on("text.tag_dropout_enable")
    inner.say("none" if unlike else "needless", "text.tag_dropout_enable", "text.tag_dropout_mode", "text.tag_dropout_probability",
              note="all tags are dropped at once there" if unlike else "it is off")  # fmt: skip


def _variants(inner: Translation) -> None:
    """Random colours and turns."""
    drawn = False
    for theirs, ours, most, factor in (
        ("rotate", "rotation", "random_rotate_max_angle", 1.0),
        *((name, name, f"random_{name}_max_strength", 1.0) for name in ("brightness", "contrast", "saturation")),
        ("hue", "hue", "random_hue_max_strength", 180.0),
    ):
        names = (f"image.enable_random_{theirs}", f"image.{most}")
        strength = inner.number(names[1]) * factor
        if not inner.on(names[0]) or not strength:
            fixed = inner.on(f"image.enable_fixed_{theirs}")
            inner.say("none" if fixed else "needless", *names, note="it is off")
            continue
        drawn = True
        limit = 180.0 if theirs in ("rotate", "hue") else 1.0
        differs = "one of the cached variants is drawn each time" + (f"; at most {limit:g} here" * (strength > limit))
        inner.put(f"dataset.random_{ours}", min(strength, limit), *names, nearly=differs)
    count = inner.whole("image_variations", 1)
    if count > 1 and (drawn or inner.on("image.enable_crop_jitter", True)):
        inner.put("dataset.image_variants", count, "image_variations")
    inner.say("needless", "image_variations", note="images do not change" if not drawn else "eight variants here")
