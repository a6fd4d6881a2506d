"""SimpleTuner's datasets: multidatabackend.json, and the options of a run that hold for each of them."""

import json
from typing import Any

from ...data.sets.checks import Surroundings
from ...data.sets.simpletuner import CACHES, simpletuner_sets
from ...errors import ConfigError
from ...types import Record
from .. import values
from ..translation import Translation, dataset_table

OF_DATASETS = (
    "resolution", "resolution_type", "minimum_image_size", "maximum_image_size", "target_downsample_size", "caption_strategy",
    "instance_prompt", "prepend_instance_prompt", "only_instance_prompt", "disable_multiline_split",
)  # fmt: skip
"""Options of the run that hold for each dataset without its own."""


NUMBERS = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")


SWITCHES = ("prepend_instance_prompt", "only_instance_prompt", "disable_multiline_split")


def translate_datasets(entries: list[Record], around: Surroundings) -> Translation:
    """A multidatabackend.json alone."""
    made = Translation("simpletuner", ("config",), {})
    add_sets(made, entries, around)
    return made


def datasets(made: Translation, around: Surroundings) -> None:
    """Set the datasets: those of data_backend_config, with what the run says for all of them."""
    place = made.text("data_backend_config")
    path = around.find(place) if place else None
    if place and path is None:
        made.put("dataset_files", [place], "data_backend_config")
        made.notes.append(
            f"dataset_files: {place} is not there yet; it is read when the run starts, from the folder that it is started in"
        )
        note = f"it holds for every dataset there: write it into {place}"
        _for_all(made)
        for name in (*OF_DATASETS, "caption_dropout_probability"):
            made.say("none" if made.on(name) else "needless", name, note=note if made.on(name) else "it is off")
        return
    if made.has("caption_dropout_probability"):
        made.put("dataset.caption_dropout", made.number("caption_dropout_probability"), "caption_dropout_probability")
    if path is None:
        return
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data_backend_config = {place!r} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise ConfigError(f"data_backend_config = {place!r} is not a list of datasets")
    made.say("exact", "data_backend_config", note=f"read from {path}", ours="dataset")
    shared = {name: _typed(made, name) for name in OF_DATASETS if made.has(name)}
    made.say("exact", *OF_DATASETS, note="for each dataset without its own", ours="dataset")
    add_sets(made, [{**shared, **entry} for entry in entries], around.at(path.parent))


def _for_all(made: Translation) -> None:
    """Options of the run that hold for datasets of a file which is not there yet."""
    kind = made.text("resolution_type", "pixel_area")
    if made.has("resolution"):
        side = made.number("resolution")
        made.put(
            "data.resolution", round((side * 1e6) ** 0.5 / 16) * 16 if kind == "area" else round(side), "resolution"
        )
    if kind in ("pixel", "pixel_area", "area"):
        made.put("data.buckets", "pixel" if kind == "pixel" else "pixel_area", "resolution_type")
    if not made.on("prepend_instance_prompt") and not made.on("only_instance_prompt"):
        made.say("needless", "instance_prompt", note="a dataset with caption_strategy instanceprompt reads its own")


def _typed(made: Translation, name: str) -> Any:
    return made.number(name) if name in NUMBERS else made.on(name) if name in SWITCHES else made.get(name)


def add_sets(made: Translation, entries: list[Record], around: Surroundings) -> None:
    """Write a [[dataset]] table for each dataset of a multidatabackend.json."""
    set_options = [_without_defaults(entry) for entry in entries]
    placed = [_placed(made, entry) for entry in set_options]
    pairs = zip(placed, set_options, strict=True)
    unpacked = {str(one["instance_data_dir"]) for one, entry in pairs if one is not entry}
    sets, notes = simpletuner_sets(placed)
    made.notes += notes
    for options in sets:
        if options["folder"] in unpacked:  # `unpack` writes a metadata.jsonl
            options["captions"] = "metadata"
    made.datasets += [dataset_table(options, around) for options in sets]
    for number, entry in enumerate(entries, 1):
        kind = str(entry.get("dataset_type", "image"))
        cache = "caches have a folder of their own" if kind in CACHES else ""
        made.list_options(str(entry.get("id", number)), "data", entry, cache)


def _placed(made: Translation, entry: Record) -> Record:
    """A dataset of the hub as the folder that it becomes, with the commands that make it."""
    if entry.get("type") != "huggingface" or not entry.get("dataset_name"):
        return entry
    name = str(entry["dataset_name"])
    folder = f"datasets/{name.rpartition('/')[2]}"
    made.notes.append(
        f"dataset.folder: {folder} has to be made of {name}: hf download {name} --repo-type dataset --local-dir downloads/{name}, then lora-loom unpack downloads/{name} {folder}"
    )
    kept = {key: value for key, value in entry.items() if key not in OF_THE_HUB}
    return {**kept, "type": "local", "instance_data_dir": folder, "caption_strategy": "textfile"}


OF_THE_HUB = (
    "dataset_name", "split", "subfolder", "revision", "streaming", "num_proc", "hf_token", "auto_load", "image_column", "caption_column",
    "video_column", "huggingface", "caption_strategy", "metadata_backend",
)  # fmt: skip
"""Options that say how a dataset of the hub is read."""


def _without_defaults(entry: Record) -> Record:
    """A dataset without options that a run of many sets leaves empty."""
    return {name: value for name, value in entry.items() if value not in values.ABSENT}
