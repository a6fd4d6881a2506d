"""The result of reading a dataset file, and checks of option values that its readers share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...config.dataset import DataConfig, DatasetConfig
from ...errors import ConfigError, some

LEVELS = 4
"""So many folders are tried for a relative path: the file's own and those above it."""


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """The sets that a dataset file describes."""

    sets: tuple[DatasetConfig, ...]
    notes: tuple[str, ...] = ()
    """One line for every option that was interpreted differently or ignored."""


def text_of(options: Mapping[str, object], name: str, default: str = "") -> str:
    """The text under `name`; a number is taken as it is written. Raises ConfigError for anything else."""
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {value!r}: use a text in quotes")
    return value


def number_of(options: Mapping[str, object], name: str, default: float = 0.0, least: float = 0.0) -> float:
    """The number under `name`. Raises ConfigError if the value is not a number from `least` up."""
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e9:
        raise ConfigError(f"{name} = {value!r}: use a number from {least:g} up")
    return value


def whole_of(options: Mapping[str, object], name: str, default: int = 0) -> int:
    """The whole number under `name`. Raises ConfigError if the value is not a whole number from 0 up."""
    value = number_of(options, name, default)
    if value != int(value):
        raise ConfigError(f"{name} = {value!r}: use a whole number")
    return int(value)


def switch_of(options: Mapping[str, object], name: str, *, default: bool = False) -> bool:
    """The truth value under `name`. Raises ConfigError if the value is neither true nor false."""
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: use true or false")
    return value


def ignored_options(
    options: Mapping[str, object], instead: Mapping[str, str], known: Iterable[str], where: str
) -> list[str]:
    """Notes on the options that are ignored: those in `instead`, with what to do instead, and those that are not `known`."""
    given = {name: value for name, value in options.items() if value not in (None, False, 0, "", [], {})}
    notes = [f"{where}: {name} = {given[name]!r} is ignored; {instead[name]}" for name in given if name in instead]
    unknown = sorted(str(name) for name in options.keys() - set(known) - instead.keys())
    if unknown:
        notes.append(f"{where}: unknown options are ignored: {some(unknown, 12)}")
    return notes


PATCH = 16
"""Pixels that one 2x2 patch of latents covers: the finest step that every network can take."""


def check_bucket_steps(data: DataConfig, sets: Sequence[DatasetConfig]) -> None:
    """Raises ConfigError for a bucket step, of all datasets or of one, that no network can take."""
    asked = [("data.bucket_step", data.bucket_step), *(("dataset.bucket_step", one.bucket_step) for one in sets)]
    for name, value in asked:
        if value % PATCH:
            raise ConfigError(f"{name} = {value}: use a multiple of {PATCH}")


def found_from(text: str, folder: Path) -> Path | None:
    """The file or folder that a path of another trainer's file in `folder` means. None if it is not there.

    Their paths start from the folder that the trainer runs in, which is the file's own or, as in their guides, one above it.
    """
    path = Path(text).expanduser()
    if path.is_absolute():
        return path if path.exists() else None
    above = [folder, *folder.absolute().parents[: LEVELS - 1]]
    return next((place / path for place in above if (place / path).exists()), None)


@dataclass(frozen=True)
class Surroundings:
    """Where another trainer's file lies, and what may be looked at from there."""

    folder: Path
    allowed: Callable[[Path], bool] = lambda path: True
    """Whether a path may be looked at. A workflow, which may come from anybody, sees only what ComfyUI allows."""

    def find(self, text: str) -> Path | None:
        """The file or folder that a path in the file means. None if it is not there, or may not be looked at."""
        found = found_from(text, self.folder)
        return found if found is not None and self.allowed(found) else None

    def at(self, folder: Path) -> "Surroundings":
        """The same for a file in another folder."""
        return replace(self, folder=folder)
