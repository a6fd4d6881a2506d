"""Types and names in the configuration, checked by pydantic; its problems in the form "training.steps = 'x': use a valid integer".

pydantic is imported when the first section is made, not with the classes.
"""

import dataclasses
import re
import typing
from collections.abc import Hashable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ..choices import NOT_HERE, Choice, entry_of
from ..errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core.core_schema import CoreSchema


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Annotation of a field whose value is a name in a table of choices.py: `Annotated[str, OneOf(SAMPLERS)]`."""

    table: Mapping[str, Choice]
    more: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    """Values that are not in the table, before those that are."""
    by_path: Choice | None = None
    """What the path of a class stands for, where one may be named instead."""

    @property
    def choices(self) -> dict[str, Choice]:
        """{value: what it stands for}, as the table is now."""
        return {**self.more, **self.table}

    def entry(self, value: str) -> Choice | None:
        """What a value stands for; None for a name that is not known."""
        return entry_of(self.choices, value, self.by_path)

    def checked(self, value: str) -> str:
        """The value itself, for pydantic. Raises its error for a name that is not known."""
        from pydantic_core import PydanticCustomError

        if self.entry(value) is None:
            remedy = known_values(value, list(self.choices)) + (", or the path of a class" if self.by_path else "")
            raise PydanticCustomError("one_of", "{remedy}", {"remedy": remedy})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> "CoreSchema":
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.checked, handler(source))


def one_of(cls: type, name: str) -> OneOf | None:
    """The table of choices of a field, if it has one."""
    hint = typing.get_type_hints(cls, include_extras=True)[name]
    return next((found for found in getattr(hint, "__metadata__", ()) if isinstance(found, OneOf)), None)


def known_values(value: object, known: list[str]) -> str:
    """The remedy for a value that is not one of `known`: all of them, and the nearest."""
    *others, last = [repr(name) for name in known]
    listed = f"use {', '.join(others)} or {last}" if others else f"use {last}"
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"{listed} ({near})" if near.startswith("did you mean") else listed


def check_types(section: object, table: str) -> None:
    """Raise ConfigError naming every field of a section whose value is not of the type that its annotation says."""
    import pydantic

    try:
        _fields(typing.cast(Hashable, type(section))).model_validate(vars(section))
    except pydantic.ValidationError as error:
        raise problems(error, type(section), table) from error


@cache
def _fields(cls: Hashable) -> "type[BaseModel]":
    """What checks the fields of a section that has been made; pydantic would make a dataclass itself once more."""
    import pydantic

    section: Any = cls
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {field.name: (hints[field.name], ...) for field in dataclasses.fields(section)}
    return pydantic.create_model(section.__name__, __config__=section.__pydantic_config__, **fields)


def problems(error: "ValidationError", kind: type, prefix: str = "") -> ConfigError:
    """All problems that pydantic found in a section, or in plain data for one, in one line."""
    explained: dict[str, list[str]] = {}
    for problem in error.errors():
        what, remedy = _explain(kind, problem, prefix)
        explained.setdefault(what, []).append(remedy)
    return ConfigError("; ".join(what + _either(remedies) for what, remedies in explained.items()))


def _either(remedies: list[str]) -> str:
    """Joins the remedies of a field that takes several kinds of value: "use a valid string or a valid array"."""
    first, *others = dict.fromkeys(remedies)
    return first + "".join(f" or {other.removeprefix('use ')}" for other in others)


def _explain(kind: type, problem: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """Returns (what is wrong, the remedy)."""
    path = [
        part
        for part in problem["loc"]
        if isinstance(part, int) or (part.isidentifier() and part not in ("float", "str"))
    ]
    name, value = ".".join(str(part) for part in ([prefix] if prefix else []) + path), problem["input"]
    if problem["type"] == "unexpected_keyword_argument":
        if not path or path[-1] != problem["loc"][-1]:  # a name that is none
            return f"unknown option {str(problem['loc'][-1])[:100]!r}: ", "see the option list in docs/configuration.md"
        return f"unknown option {name}: ", did_you_mean(str(path[-1]), _known_fields(kind, path[:-1]))
    if problem["type"] == "missing":
        return f"{name} is missing: ", "add it, or see the option list in docs/configuration.md"
    if problem["type"] in ("literal_error", "one_of") and (reason := _not_here(name, value)):
        return f"{name} = {value!r}: ", reason
    if problem["type"] == "literal_error" and (known := re.findall(r"'([^']*)'", problem["ctx"]["expected"])):
        return f"{name} = {value!r}: ", known_values(value, known)
    return f"{name} = {_short(value)}: ", problem["msg"].replace("Input should be", "use")


def _not_here(name: str, value: object) -> str:
    """What is said of a value that other trainers have and this one has not; "" for others."""
    word = re.sub(r"[-_ ]", "", value.lower()).removesuffix("attention") if isinstance(value, str) else ""
    return NOT_HERE.get(name, {}).get(word, "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _known_fields(kind: type, path: list[str | int]) -> list[str]:
    """Field names of the section that `path` leads to."""
    inner: Any = kind
    for part in path:
        inner = typing.get_args(inner)[0] if isinstance(part, int) else typing.get_type_hints(inner)[part]
    return [field.name for field in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else []


def parse_sizes(name: str, text: str) -> list[tuple[int, int]]:
    """The sizes of "512x512, 768x512" as (width, height) in pixels. Raises ConfigError."""
    sizes = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(\d{1,6})\s*[xX]\s*(\d{1,6})", part)
        if not match or not int(match[1]) or not int(match[2]):
            raise ConfigError(
                f'{name} = {text!r}: {part!r} is not a size; write widths and heights as "512x512, 768x512"'
            )
        sizes.append((int(match[1]), int(match[2])))
    return sizes
