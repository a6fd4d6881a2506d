"""TOML to TrainConfig and back to plain data, with errors that name the place, the value and the nearest known name."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..storage.limits import refuse_bombs
from ..types import Record
from .aliases import Note, current_option, current_options, current_tree, log_note
from .as_meant import as_meant
from .checks import problems
from .run import TrainConfig
from .toml_text import toml_hint

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same library under its older name
    import tomli as tomllib

T = TypeVar("T")

FREE_ON_RESUME = {
    "memory": None,
    "validation": None,
    "sweep": None,
    "output": None,
    "training": (
        "steps",
        "save_every",
        "keep_checkpoints",
        "epochs",
        "save_every_epochs",
        "keep_loras",
        "keep_best",
        "goal",
    ),
}
"""Sections, or fields of a section, that may change when a run is continued."""

NAMED_BY_PATH = {"model": ("base", "encoders", "vae", "tokenizers", "device", "base_lora"), "network": ("init_from",)}
"""Settings that are paths: the digest of what they lead to counts instead, and a device does not."""


WERE: dict[str, Record] = {"objective": {"timestep_spread": "independent"}, "training": {"ema_decay": 0.0}}
"""{section: {option: what a run did that was begun before there was the option}}, where that is not its default."""

KEPT = {"memory": ("vae_tiling", "compile")}
"""Settings of a free section that may not change all the same. Of vae_tiling the digest of the encoders says it."""
DIGESTED = ("vae_tiling",)


def free_on_resume() -> str:
    """The sentence that says what may change, for messages and documentation."""
    fields = [f"{section}.{name}" for section, names in FREE_ON_RESUME.items() for name in names or ()]
    free = [section for section, names in FREE_ON_RESUME.items() if names is None]
    *sections, last = [f"{one} (but {' and '.join(KEPT[one])})" if one in KEPT else one for one in free]
    return f"Only {', '.join(fields)} and the sections {', '.join(sections)} and {last} may change"


def load(path: Path, overrides: Iterable[str] = (), note: Note = log_note) -> TrainConfig:
    """Read a TOML file and apply `a.b=c` overrides. Raises ConfigError.

    `note` receives a sentence for each option that goes by an older name.
    """
    noted: dict[str, None] = {}
    data = current_tree(read_toml(path), noted.setdefault)
    for text in overrides:
        override(data, text, noted.setdefault)
    config = parse(data, TrainConfig, noted.setdefault)
    for text in noted:
        note(text)
    return config


def read_toml(path: Path) -> Record:
    """A TOML file as plain data. Raises ConfigError if it cannot be read or is not valid TOML."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return toml_tables(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}{toml_hint(text, error)}") from error


def toml_tables(text: str) -> Record:
    """A TOML text as plain data. Raises ValueError or RecursionError."""
    return tomllib.loads(refuse_bombs(text))


def override(data: Record, text: str, note: Note = log_note) -> None:
    """Set data[a][b] for "a.b=c"; c is read as a TOML value and, where that fails, as a plain string."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: write section.field=value, e.g. training.steps=500")
    written = name.strip().split(".")
    *parents, last = current_option(written)
    if last != written[-1]:
        note(f"{written[0]}.{written[-1]} is now {written[0]}.{last}")
    target: Any = data
    for part in parents:
        target = _child(target, part, text)
    parsed = _toml_value(value.strip())
    if isinstance(target, list):
        target[_index(target, last, text)] = parsed
    else:
        target[last] = parsed


def _child(target: Any, part: str, text: str) -> Any:
    """One level down; tables that are not there yet are made."""
    child = target[_index(target, part, text)] if isinstance(target, list) else target.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {text!r}: nothing can be set below {part!r}, which is {child!r}")
    return child


def _index(target: list[Any], part: str, text: str) -> int:
    if not part.isdecimal() or int(part) >= len(target):
        raise ConfigError(f"--set {text!r}: {part!r} is not one of the {len(target)} entries (0 to {len(target) - 1})")
    return int(part)


def _toml_value(text: str) -> object:
    try:
        return toml_tables(f"value = {text}")["value"]
    except (ValueError, RecursionError, KeyError):
        return text


def read_options(name: str, text: str) -> Record:
    """Lines "option = value" as a table, for a text field of a node. Raises ConfigError; `name` is the field's."""
    try:
        return toml_tables(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{name} = {text[:200]!r}: write one option = value a line, e.g. betas = [0.9, 0.99] ({error})"
        ) from error


def parse(data: Mapping[str, Any], kind: type[T], note: Note = log_note) -> T:
    """Check plain data against a section of the configuration and build it. Raises ConfigError naming every problem.

    `note` receives a sentence for each option that goes by an older name.
    """
    import pydantic

    table = getattr(kind, "table", "")
    data = current_options(table, data, note) if table else current_tree(data, note)
    data = as_meant(data, kind)
    try:
        text = json.dumps(data)
    except TypeError as error:
        raise ConfigError(f"dates and times mean nothing here ({error}); use text or numbers") from error
    try:
        return pydantic.TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise problems(error, kind, table) from error


def to_dict(config: Any) -> Record:
    """Plain data that `parse` turns back into an equal configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def fixed_settings(config: Record, facts: Mapping[str, object]) -> Record:
    """What must stay equal for a run to be continued: settings, with paths replaced by digests of what they hold.

    `config` is plain data in the shape of `TrainConfig`, or a part of it; `facts` holds the digests, e.g. {"model": ...,
    "data": ...}. The name is that of the run's folder.
    """
    sections = {
        section: fields for section, fields in config.items() if isinstance(fields, dict) and section != "cache"
    }
    fixed = {
        section: {name: value for name, value in fields.items() if not _may_change(section, name)}
        for section, fields in sections.items()
    }
    return {**{section: fields for section, fields in fixed.items() if fields}, "facts": dict(facts)}


def _may_change(section: str, field: str) -> bool:
    free = FREE_ON_RESUME.get(section, ())
    if field in KEPT.get(section, ()) and field not in DIGESTED:
        return False
    return free is None or field in free or field in NAMED_BY_PATH.get(section, ())


def digest(data: object) -> str:
    """Returns the sha256 of plain data, independent of key order."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(old: Record, new: Record, prefix: str = "") -> list[str]:
    """Lines "section.field: old -> new" for everything that differs."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines


def changed_settings(old: Record, new: Record) -> list[str]:
    """Describes the `differences` between what was fixed for a run and what is asked for now, under the present names of the options.

    Options that the run's version did not have yet count as in `WERE`, else as they are by default, so that it can be
    continued, and what it kept fixed but this version does not is left out.
    """
    old = current_tree(old)
    plain = to_dict(parse({"name": "x", "model": {"base": "x"}, "dataset": [{"folder": "x"}]}, TrainConfig))
    before = fixed_settings({name: fields for name, fields in old.items() if name != "facts"}, old.get("facts", {}))
    for section, asked in new.items():
        if isinstance(asked, dict) and isinstance(plain.get(section), dict):
            had = before.get(section, {})
            meant = {**plain[section], **WERE.get(section, {})}
            later = {name: meant[name] for name in asked if name in plain[section] and name not in had}
            before[section] = {**had, **later}
    return differences(before, new)
