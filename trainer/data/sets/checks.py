"""What a file of data sets comes to, and the checks that its readers share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...config.dataset import DatasetConfig
from ...errors import ConfigError

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    sets: tuple[DatasetConfig, ...]
    notes: tuple[str, ...] = ()
    """What was taken otherwise than written, or not at all."""


def text_of(options: Mapping[str, Any], name: str, default: str = "") -> str:
    """Raises ConfigError if the value is no text."""
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {value!r}: use a text in quotes")
    return value


def number_of(options: Mapping[str, Any], name: str, default: float = 0.0) -> float:
    """Raises ConfigError if the value is no number from 0 up."""
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ConfigError(f"{name} = {value!r}: use a number from 0 up")
    return value


def whole_of(options: Mapping[str, Any], name: str, default: int = 0) -> int:
    """Raises ConfigError if the value is no whole number from 0 up."""
    value = number_of(options, name, default)
    if value != int(value):
        raise ConfigError(f"{name} = {value!r}: use a whole number")
    return int(value)


def switch_of(options: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Raises ConfigError if the value is neither true nor false."""
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}: use true or false")
    return value


def untaken(options: Mapping[str, Any], instead: Mapping[str, str], known: Iterable[str], where: str) -> list[str]:
    """Notes on what was not taken: options with something else to do, and unknown ones."""
    asked = {name: value for name, value in options.items() if value not in (None, False, 0, "", [], {})}
    notes = [f"{where}: {name} = {asked[name]!r} is not taken; {instead[name]}" for name in asked if name in instead]
    unknown = sorted(str(name) for name in options.keys() - set(known) - instead.keys())
    if unknown:
        notes.append(f"{where}: unknown and not taken: {', '.join(unknown)}")
    return notes
