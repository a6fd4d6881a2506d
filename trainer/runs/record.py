"""The configuration in a run's folder, whichever front end and version wrote it, as the command line's configuration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.aliases import current_tree, no_note
from ..config.run import TrainConfig
from ..config.toml import override, parse
from ..errors import ConfigError, DataError
from ..storage.names import check_name
from ..types import Record
from .run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RecordedConfig(TrainConfig):
    """The configuration of a run that exists. One that ComfyUI made names no dataset: its images are listed in the cache."""

    def __post_init__(self) -> None:
        check_name(self.name)


def recorded_tables(folder: RunFolder) -> Record:
    """The tables of run.json under their present names. A run of ComfyUI lacks model.base and dataset, and has a cache.

    Raises RunError if run.json is damaged.
    """
    tables = current_tree(folder.read().get("config", {}))
    tables.pop("facts", None)  # empty, in graph runs of version 0.1
    cache = tables.get("cache")
    if isinstance(cache, str):  # version 0.1 kept the listing's name alone
        tables["cache"] = {"folder": str(folder.path.parent / "cache"), "listing": cache}
    elif cache and "data" not in tables:
        tables["data"] = {"resolution": cache["resolution"]}
    output = {**tables.get("output", {}), "directory": str(folder.path.parent)}  # the folder may have been moved
    return {**tables, "name": folder.name, "output": output}


def run_config(folder: RunFolder, overrides: Sequence[str] = ()) -> RecordedConfig:
    """The configuration of a run, with `a.b=c` overrides. Raises ConfigError for a run of ComfyUI without `model.base`."""
    tables = recorded_tables(folder)
    tables.pop("cache", None)
    for text in overrides:
        override(tables, text)
    if not tables.get("model", {}).get("base"):
        raise ConfigError(
            f"run {folder.name} was trained in ComfyUI, and its run.json names no base model: "
            "give --set model.base=PATH, a diffusers folder or a .safetensors file"
        )
    return parse(tables, RecordedConfig, no_note)


def training_images(folder: RunFolder) -> list[Path]:
    """Images that a run of ComfyUI was trained on, by the listing in its cache. Raises DataError if that is gone."""
    return list(training_captions(folder))


def training_captions(folder: RunFolder) -> dict[Path, str]:
    """The same images with their first captions."""
    cache = recorded_tables(folder).get("cache")
    if not cache:
        return {}
    listing = Path(cache["folder"]) / cache["listing"]
    try:
        examples = json.loads(listing.read_text(encoding="utf-8"))
        return {Path(one["path"]): str((one.get("captions") or [""])[0]) for one in examples if one["role"] == "train"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the cache lost {listing}, or it is of another version ({error})") from error
