"""Files that describe data sets: our own TOML, kohya's TOML, SimpleTuner's multidatabackend.json.

Each becomes sets of the engine and notes: what was taken otherwise than written, or not at all, is always said. Relative
paths start from the file's folder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config.dataset import DatasetConfig
from ...config.toml import parse, read_toml
from ...errors import ConfigError, DataError, LoomError
from .checks import DatasetFile, Json
from .kohya import kohya_sets
from .simpletuner import simpletuner_sets

PATHS = ("folder", "masks")
Find = Callable[[str, str], str]
"""(path as written, option) to the path that is used. Raises ConfigError if it may not be used."""


def read_dataset_file(path: Path, find: Find | None = None) -> DatasetFile:
    """The sets of a file. `find` judges every path in it; by default they start from the file's folder.

    Raises ConfigError or DataError that names the file.
    """
    kinds = {".toml": _toml_sets, ".json": _json_sets}
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"{path}: use a .toml (ours or kohya's) or a .json (SimpleTuner's multidatabackend)")
    try:
        made, notes = kinds[path.suffix.lower()](path)
        sets = []
        for number, options in enumerate(made):
            try:
                sets.append(_with_paths(parse(options, DatasetConfig), path.parent, find))
            except LoomError as error:
                raise ConfigError(f"set {number + 1} ({options.get('folder', 'no folder')}): {error}") from error
    except LoomError as error:
        raise type(error)(f"{path}: {error}") from error
    if not sets:
        raise DataError(f"{path} describes no images: {'; '.join(notes) or 'add a set'}")
    return DatasetFile(sets=tuple(sets), notes=tuple(f"{path.name}: {note}" for note in notes))


def gather_sets(sets: Sequence[DatasetConfig], files: Sequence[str]) -> DatasetFile:
    """The sets of a configuration and of the files that it names. Raises ConfigError if nothing is trained on."""
    listed = [read_dataset_file(Path(file).expanduser()) for file in files]
    found = (*sets, *(one for each in listed for one in each.sets))
    if not any(one.role == "train" for one in found):
        raise ConfigError("no set has role = 'train': give one set role = 'train'")
    return DatasetFile(sets=found, notes=tuple(note for each in listed for note in each.notes))


def _with_paths(config: DatasetConfig, base: Path, find: Find | None) -> DatasetConfig:
    changes: dict[str, Any] = {}
    for name in PATHS:
        text = getattr(config, name)
        if text and not (name == "masks" and text == "alpha"):
            place = str(base / Path(text).expanduser())
            changes[name] = find(place, name) if find else place
    if config.references:
        places = [str(base / Path(text).expanduser()) for text in config.reference_folders]
        changes["references"] = tuple(find(place, "references") if find else place for place in places)
    if config.metadata:
        here = base / Path(config.metadata).expanduser()
        place = str(here if here.is_file() else Path(changes["folder"]) / config.metadata)
        changes["metadata"] = find(place, "metadata") if find else place
    return replace(config, **changes)


def _toml_sets(path: Path) -> tuple[list[Json], list[str]]:
    data = read_toml(path)
    if "datasets" in data:
        return kohya_sets(data)
    unknown = sorted(data.keys() - {"dataset"})
    tables = data.get("dataset")
    if unknown or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(
            f"it holds {', '.join(data) or 'nothing'}: write one [[dataset]] table per set, or kohya's [[datasets]]"
        )
    return tables, []


def _json_sets(path: Path) -> tuple[list[Json], list[str]]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not valid JSON: {error}") from error
    if not isinstance(data, list) or not all(isinstance(entry, Mapping) for entry in data):
        raise ConfigError("it is no list of data sets, as SimpleTuner's multidatabackend.json is")
    return simpletuner_sets(data)
