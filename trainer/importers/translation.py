"""A configuration on its way into ours: the options that were read, the settings they became, and what is said about each."""

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..choices import ADAPTERS
from ..config.dataset import DatasetConfig
from ..config.network import OF_WHOLE, ONLY_SOME, WHOLE
from ..config.run import TrainConfig
from ..config.section import as_tuple
from ..data.sets.checks import Surroundings
from ..errors import ConfigError
from ..types import Record
from . import values
from .table import TRAINERS, Row, by_name

Became = Literal["exact", "nearly", "needless", "none"]
PATHS = ("folder", "masks", "metadata", "references")
"""Options of a dataset that are paths."""
TITLES: dict[Became, str] = {
    "exact": "taken exactly",
    "nearly": "taken with a difference",
    "needless": "not needed here",
    "none": "no counterpart here, not taken",
}
"""The kinds of outcomes, in the order of the list."""
SECRET = re.compile(r"(token|api_key|password)$|secret|webhook", re.IGNORECASE)
"""Names of options whose values are never written or printed."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An option of the other trainer's file, and what became of it."""

    option: str
    value: Any
    became: Became
    ours: str = ""
    note: str = ""

    def text(self) -> str:
        """The option, its value, and what it is here, in one line."""
        arrow = f" -> {self.ours}" if self.ours else ""
        return f"{self.option} = {_short(self.value)}{arrow}{f': {self.note}' if self.note else ''}"


@dataclass(kw_only=True)
class DatasetTable:
    """A [[dataset]] table that will be written."""

    options: Record
    comments: dict[str, str] = field(default_factory=dict)


def dataset_table(options: Mapping[str, Any], around: Surroundings) -> DatasetTable:
    """The table for options that a reader of dataset files has made: without those that are our defaults.

    A path that leads nowhere from here is looked for from the folder around it and those above.
    """
    defaults = {one.name: one.default for one in fields(DatasetConfig)}
    kept = {name: value for name, value in options.items() if name == "folder" or as_tuple(value) != defaults[name]}
    comments = {"folder": "not there yet"} if around.find(str(kept["folder"])) is None else {}
    return DatasetTable(options={name: _place(name, value, around) for name, value in kept.items()}, comments=comments)


def _place(name: str, value: Any, around: Surroundings) -> Any:
    if name not in PATHS or not value or value == "alpha":
        return value
    if isinstance(value, list):
        return [_place(name, one, around) for one in value]
    found = None if Path(value).exists() else around.find(value)
    return str(found) if found else value


class Translation:
    """What is known of a configuration while it is translated. The modules of the trainers fill it.

    `options` are those of the file, as they are written there. Each is said something about exactly once: by the code that reads
    it together with others, or at the end by its row of the table.
    """

    def __init__(self, trainer: str, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        self.trainer = trainer
        self.rows = by_name(trainer, parts)
        self.written: dict[str, str] = {}
        self.options: Record = {}
        for written, value in options.items():
            name = self._canonical(written)
            self.written[name] = written
            self.options[name] = value
        self.settings: Record = {}
        self.comments: dict[str, str] = {}
        self.datasets: list[DatasetTable] = []
        self.for_datasets: Record = {}
        """Options of every [[dataset]] table that does not have its own."""
        self.notes: list[str] = []
        self.taken: dict[str, Taken] = {}
        self.inner: list[Taken] = []
        """What is said about options of tables inside of an option."""

    @property
    def title(self) -> str:
        """What people call the trainer."""
        return TRAINERS[self.trainer]

    def _canonical(self, written: str) -> str:
        name = written.lstrip("-")
        for known in (name, name.replace("-", "_"), f"env:{name}"):
            if known in self.rows:
                return self.rows[known].option
        return name

    # Reading. An option that is absent, or written as None or "", gives the default.

    def has(self, name: str) -> bool:
        """Whether the file sets the option."""
        return not any(self.options.get(name) is absent or self.options.get(name) == absent for absent in values.ABSENT)

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is written."""
        return self.options[name] if self.has(name) else default

    def text(self, name: str, default: str = "") -> str:
        """The value as a text."""
        return str(self.get(name, default)).strip()

    def number(self, name: str, default: float = 0.0) -> float:
        """The value as a number. Raises ConfigError."""
        return values.number(self.written.get(name, name), self.get(name, default))

    def whole(self, name: str, default: int = 0) -> int:
        """The value as a whole number. Raises ConfigError."""
        return values.whole(self.written.get(name, name), self.get(name, default))

    def on(self, name: str, default: bool = False) -> bool:
        """The value as a switch."""
        return values.is_on(self.get(name, default))

    # Writing.

    def put(self, ours: str, value: Any, *names: str, nearly: str = "", why: str = "") -> None:
        """Set one of our options. `names` are those of the file that decide it; `nearly` is the difference, if there is one.

        `why` is the comment behind the setting, for one that no option of the file has set.
        """
        table, _, option = ours.partition(".")
        if table == "network" and self.settings.get("network.kind") == WHOLE and option not in OF_WHOLE:
            self.say("needless", *names, note="the model itself is trained, without an adapter")
            return
        given = [name for name in names if name in self.options]
        comment = why or ", ".join(self.written[name] for name in given) or f"default of {self.title}"
        target = self.for_datasets if ours.startswith("dataset.") else self.settings
        target[ours.removeprefix("dataset.") if target is self.for_datasets else ours] = value
        self.comments[ours] = comment
        for name in given:
            self.say("nearly" if nearly else "exact", name, note=nearly, ours=ours)
        if nearly and not given:
            self.notes.append(f"{ours}: {nearly}")

    def say(self, became: Became, *names: str, note: str = "", ours: str = "") -> None:
        """Say what became of options of the file; those that it does not have are left out. The first word on an option counts."""
        for name in names:
            if name not in self.options:
                continue
            earlier = self.taken.get(name)
            if earlier is None:
                option = self.written[name]
                value = "(a secret)" if SECRET.search(option) else self.options[name]
                self.taken[name] = Taken(option=option, value=value, became=became, ours=ours, note=note)
            elif ours and ours not in earlier.ours.split(", "):
                kept: Record = {**vars(earlier), "ours": f"{earlier.ours}, {ours}" if earlier.ours else ours}
                worse = became == "nearly" and earlier.became == "exact"
                self.taken[name] = Taken(**{**kept, **({"became": became, "note": note} if worse else {})})

    def adopt(self, inner: "Translation", label: str) -> None:
        """Take over what was translated of an option that is a table of its own."""
        inner.rest()
        self.settings |= inner.settings
        self.for_datasets |= inner.for_datasets
        self.comments |= {ours: f"{label}: {comment}" for ours, comment in inner.comments.items()}
        self.notes += inner.notes
        said = [*(inner.taken[name] for name in inner.options), *inner.inner]
        self.inner += [Taken(**{**vars(one), "option": f"{label}.{one.option}"}) for one in said]

    def list_options(self, label: str, part: str, options: Mapping[str, Any], cache: str = "") -> None:
        """Say what became of options that another reader has translated, by their rows. `cache`: why none of them is needed."""
        known = by_name(self.trainer, (part,))
        for name, value in options.items():
            deep = isinstance(value, Mapping) and name not in known
            for inner, of in value.items() if deep else [("", value)]:
                option = f"{name}.{inner}" if deep else name
                became, note, ours = _by_reader(known.get(option), of)
                if cache:
                    became, note, ours = "needless", cache, ""
                self.inner.append(Taken(option=f"{label}.{option}", value=of, became=became, ours=ours, note=note))

    def everything(self) -> tuple[Taken, ...]:
        """What is said about each option, in the order of the file, then about those inside of options."""
        return (*(self.taken[name] for name in self.options), *self.inner)

    def rest(self) -> None:
        """Treat every option that no code has read by its row of the table."""
        for name in self.options:
            if name not in self.taken:
                self._by_row(name)

    def _by_row(self, name: str) -> None:
        row = self.rows.get(name)
        if row is None:
            self.say("none", name, note=f"{self.title} has no such option that is known here")
        elif not self.has(name):
            self.say("needless", name, note="it is not set")
        elif row.how == "needless":
            self.say("needless", name, note=row.note)
        elif (kind := self._kind_without(row)) and not is_default(self.get(name), row.default):
            self.say("none", name, note=f"{kind} has none here")
        elif row.value:
            self._switched(name, row.ours[0], row.value, row.note if row.how == "nearly" else "")
        elif row.how in ("exact", "nearly") and len(row.ours) == 1:
            value = as_option(row.ours[0], self.written[name], self.get(name))
            self.put(row.ours[0], value, name, nearly=row.note if row.how == "nearly" else "")
        elif row.how in ("exact", "nearly") and not row.ours:
            self.say("nearly" if row.how == "nearly" else "exact", name, note=row.note)
        elif is_default(self.get(name), row.default):
            self.say("needless", name, note="it is off, as by default" if not self.on(name) else "it is the default")
        else:
            self.say("none", name, note=row.note or row.meaning)

    def _kind_without(self, row: Row) -> str:
        """The kind of network that was set, if it does not read the option of a row; else ""."""
        kind, (table, _, option) = (
            str(self.settings.get("network.kind", "lora")),
            row.ours[0].partition(".") if row.ours else ("",) * 3,
        )
        return kind if table == "network" and option in ONLY_SOME and option not in ADAPTERS[kind].options else ""

    def _switched(self, name: str, ours: str, value: str, nearly: str) -> None:
        if self.on(name):
            self.put(ours, as_option(ours, name, value), name, nearly=nearly)
        else:
            self.say("exact", name, ours=ours)


def _by_reader(row: Row | None, value: Any) -> tuple[Became, str, str]:
    """Returns (what became of an option, the note, our options)."""
    if row is None:
        return "none", "no such option is known here", ""
    if value in values.ABSENT or (row.how == "none" and is_default(value, row.default)):
        return "needless", "it is off", ""
    became: Became = "exact" if row.how == "converted" else row.how
    return became, "" if became == "exact" else row.note or row.meaning, ", ".join(row.ours)


def is_default(value: Any, default: str) -> bool:
    """Whether a value is what the trainer takes anyway, or switches something off that is off by default."""
    if str(value).lower() == default.lower():
        return True
    off = default.lower() in ("", "none", "false", "0", "0.0", "[]", "{}", "off")
    return off and (value is False or str(value).lower() in ("false", "0", "0.0", "none", "[]", "{}"))


def option_types() -> dict[str, Any]:
    """Returns {option: type} of everything that can be set, by its dotted name."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(TrainConfig).items():
        section = DatasetConfig if name == "dataset" else hint
        if isinstance(section, type) and hasattr(section, "table"):
            found |= {f"{name}.{one}": kind for one, kind in typing.get_type_hints(section).items()}
        found[name] = hint
    return found


def as_option(ours: str, name: str, value: Any) -> Any:
    """A value in the type that our option has. Raises ConfigError naming their option."""
    kind = option_types()[ours]
    kinds = typing.get_args(kind) if typing.get_origin(kind) is not tuple else ()
    if kind is bool or bool in kinds:
        return values.is_on(value)
    if kind is int:
        return values.whole(name, value)
    if (kind is float or float in kinds) and not isinstance(value, bool):
        words = [word for one in kinds for word in typing.get_args(one)]
        return value if value in words else _plain(values.number(name, value))
    if typing.get_origin(kind) is tuple and not isinstance(value, list):
        inner = typing.get_args(kind)[0]
        parts = str(value).strip("[]() ").split(",") if inner in (int, float) else [value]
        return [values.whole(name, part) if inner is int else part for part in parts]
    if kind is str and isinstance(value, list | dict):
        raise ConfigError(f"{name} = {value!r}: one text can be taken here")
    return str(value) if kind is str else value


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) < 1e15 else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
