"""Datasets of sd-scripts: a dataset TOML, [[subsets]] of LoRA_Easy_Training_Scripts, or the folders of a command."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...config.toml import read_toml
from ...data.sets.checks import Surroundings
from ...data.sets.kohya import kohya_sets
from ...types import Record
from .. import values
from ..translation import Translation, as_option, dataset_table

DATA = (
    "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale", "shuffle_caption",
    "caption_separator", "caption_extension", "caption_extention", "keep_tokens", "keep_tokens_separator", "secondary_separator", "enable_wildcard",
    "caption_prefix", "caption_suffix", "color_aug", "flip_aug", "face_crop_aug_range", "random_crop", "alpha_mask", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step", "conditioning_data_dir",
)  # fmt: skip
"""Options of the run that describe its dataset, and hold for each one of a dataset TOML that does not say otherwise."""


TEXTS = (
    "caption_separator",
    "caption_extension",
    "keep_tokens_separator",
    "secondary_separator",
    "caption_prefix",
    "caption_suffix",
    "conditioning_data_dir",
)


def datasets(made: Translation, around: Surroundings, subsets: Sequence[Record] = ()) -> None:
    """Set the datasets: a dataset TOML, [[subsets]], or folders of the command."""
    shared = {name: _typed(made, name) for name in DATA if made.has(name)}
    if "caption_extention" in shared:
        shared["caption_extension"] = shared.pop("caption_extention")
    share = values.number("token_warmup_step", shared.get("token_warmup_step", 0))
    if 0 < share < 1 and made.has("max_train_steps"):
        shared["token_warmup_step"] = int(share * made.whole("max_train_steps"))
    made.say("exact", *DATA, note="", ours="dataset")
    place = made.text("dataset_config")
    path = around.find(place) if place else None
    if place and path is None:
        made.put("dataset_files", [place], "dataset_config")
        made.notes.append(f"dataset_files: {place} is not there yet; it is read when the run starts")
    elif path is not None:
        made.say("exact", "dataset_config", note=f"read from {path}", ours="dataset")
        data = read_toml(path)
        add_sets(made, {**data, "general": {**shared, **data.get("general", {})}}, around.at(path.parent))
    elif subsets:
        add_sets(made, {"general": shared, "datasets": [{"subsets": list(subsets)}]}, around)
    else:
        _folders(made, shared, around)


def _typed(made: Translation, name: str) -> Any:
    value = made.get(name)
    if name == "resolution" or name in TEXTS:
        return value if isinstance(value, list) else str(value)
    return (
        as_option("dataset.flip", name, value)
        if value is True or str(value).lower() in ("true", "false")
        else values.literal(value)
    )


def _folders(made: Translation, shared: Record, around: Surroundings) -> None:
    """--train_data_dir and --reg_data_dir: folders of N_concept folders."""
    for name, more in (("train_data_dir", {}), ("reg_data_dir", {"is_reg": True})):
        if not made.has(name):
            continue
        options = {"image_dir": made.text(name), **more}
        metadata = made.text("in_json") if name == "train_data_dir" else ""
        if metadata:
            options["metadata_file"] = metadata
            made.say("exact", "in_json", ours="dataset.metadata")
        before = len(made.datasets)
        add_sets(made, {"general": shared, "datasets": [{"subsets": [options]}]}, around, label=False)
        table = made.datasets[before].options
        if not metadata:
            table["layout"] = "kohya"
        if name == "reg_data_dir":
            table["weight"] = made.number("prior_loss_weight", 1.0)
            made.say("exact", "prior_loss_weight", ours="dataset.weight")
        if made.has("dataset_repeats"):
            table["repeats"] = made.whole("dataset_repeats")
            made.say("exact", "dataset_repeats", ours="dataset.repeats")
        made.say("exact", name, ours="dataset.folder")
    made.say("needless", "prior_loss_weight", note="there are no regularisation images")


def add_sets(made: Translation, data: Mapping[str, Any], around: Surroundings, *, label: bool = True) -> None:
    """Write a [[dataset]] table for each set of a dataset TOML; a batch size in it is the run's.

    `label`: whether its options stand in a file of their own, and are listed apart from those of the run.
    """
    sets, notes = kohya_sets(data)
    batch = next(
        (one["batch_size"] for one in (*data.get("datasets", []), data.get("general", {})) if "batch_size" in one), None
    )
    if batch is not None:
        made.put(
            "training.batch_size",
            values.whole("batch_size", batch),
            "train_batch_size",
            why="batch_size of the datasets",
        )
    made.notes += [note for note in notes if "batch_size" not in note]
    made.datasets += [dataset_table(options, around) for options in sets]
    for number, dataset in enumerate(data.get("datasets", []), 1):
        subsets = dataset.get("subsets", [])
        if label:
            made.list_options(
                f"datasets {number}", "dataset", {name: of for name, of in dataset.items() if name != "subsets"}
            )
            for inner, subset in enumerate(subsets, 1):
                made.list_options(f"datasets {number}, subset {inner}", "dataset", subset)
    if label:
        made.list_options("general", "dataset", data.get("general", {}))
