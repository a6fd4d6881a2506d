"""Dataset files: our own TOML, kohya's and musubi-tuner's TOML, SimpleTuner's multidatabackend.json.

Each is read into `DatasetConfig`s and notes, which list every option that was interpreted differently or ignored. Relative
paths start from the file's folder; those of other trainers also from the folders above it, where their guides put the images.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...config.dataset import DatasetConfig
from ...config.toml import parse, read_toml
from ...errors import ConfigError, DataError, LoomError, reading
from ...types import Json
from .checks import DatasetFile, found_from
from .kohya import kohya_sets
from .simpletuner import simpletuner_sets

PATHS = ("folder", "masks")
Find = Callable[[str, str], str]
"""A function from (path, option) to the path that is used. It raises ConfigError if the path may not be used."""


def read_dataset_file(path: Path, find: Find | None = None) -> DatasetFile:
    """The sets of a file. `find` checks and resolves every path in it; by default relative paths start from the file's folder.

    Raises ConfigError or DataError that names the file.
    """
    kinds = {".toml": _toml_sets, ".json": _json_sets}
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"{path}: use a .toml (ours or kohya's) or a .json (SimpleTuner's multidatabackend)")
    try:
        with reading("it", DataError):
            tables, notes, ours = kinds[path.suffix.lower()](path)
        sets = []
        for number, options in enumerate(tables):
            place = partial(_from_folder if ours else _from_above, path.parent)
            try:
                with reading("it", ConfigError, "check its paths"):
                    sets.append(_with_paths(parse(options, DatasetConfig), place, find))
            except LoomError as error:
                raise ConfigError(f"set {number + 1} ({options.get('folder', 'no folder')}): {error}") from error
    except LoomError as error:
        raise type(error)(f"{path}: {error}") from error
    if not sets:
        raise DataError(f"{path} describes no images: {'; '.join(notes) or 'add a set'}")
    return DatasetFile(sets=tuple(sets), notes=tuple(f"{path.name}: {note}" for note in notes))


def gather_sets(sets: Sequence[DatasetConfig], files: Sequence[str]) -> DatasetFile:
    """The sets of a configuration, followed by those of the files that it names. Raises ConfigError if none is trained on."""
    read = [read_dataset_file(Path(file).expanduser()) for file in files]
    every = (*sets, *(config for file in read for config in file.sets))
    if not any(config.role == "train" for config in every):
        raise ConfigError("no set has role = 'train': give one set role = 'train'")
    return DatasetFile(sets=every, notes=tuple(note for file in read for note in file.notes))


def _from_folder(folder: Path, text: str) -> Path:
    return folder / Path(text).expanduser()


def _from_above(folder: Path, text: str) -> Path:
    """Another trainer's path; one that leads nowhere counts from the file's folder."""
    return found_from(text, folder) or _from_folder(folder, text)


def placed(config: DatasetConfig, folder: Path, find: Find | None = None) -> DatasetConfig:
    """A set of another trainer's file in `folder`, with its paths resolved and checked by `find`."""
    return _with_paths(config, partial(_from_above, folder), find)


def _with_paths(config: DatasetConfig, place: Callable[[str], Path], find: Find | None) -> DatasetConfig:
    """The set with its paths resolved by `place` and checked by `find`."""
    changes: dict[str, Any] = {}
    for name in PATHS:
        text = getattr(config, name)
        if text and not (name == "masks" and text == "alpha"):
            path = str(place(text))
            changes[name] = find(path, name) if find else path
    if config.references:
        paths = [str(place(text)) for text in config.reference_folders]
        changes["references"] = tuple(find(path, "references") if find else path for path in paths)
    if config.metadata:
        table = place(config.metadata)
        found = table if table.is_file() else Path(changes["folder"]) / config.metadata
        path = str(found.absolute())  # a set's own metadata starts from its folder, which this must not do again
        changes["metadata"] = find(path, "metadata") if find else path
    return replace(config, **changes)


def _toml_sets(path: Path) -> tuple[list[Json], list[str], bool]:
    """Returns (options of the sets, notes, whether the file is ours)."""
    data = read_toml(path)
    if "datasets" in data:
        return (*kohya_sets(data), False)
    unknown = sorted(data.keys() - {"dataset"})
    tables = data.get("dataset")
    if unknown or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(
            f"it holds {', '.join(data) or 'nothing'}: write one [[dataset]] table per set, or kohya's [[datasets]]"
        )
    return tables, [], True


def _json_sets(path: Path) -> tuple[list[Json], list[str], bool]:
    try:
        data: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not valid JSON: {error}") from error
    if not isinstance(data, list) or not all(isinstance(entry, Mapping) for entry in data):
        raise ConfigError("it is not a list of datasets, as SimpleTuner's multidatabackend.json is")
    return (*simpletuner_sets(data), False)
