"""Values of a TOML file as they are meant: numbers where texts are meant, and one value where a list is."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any


def as_meant(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Plain data for a section with numbers written as texts (`seeds = 3`) and single values as lists (`prompts = "cat"`).

    Everything else is left as it is: what does not fit is refused with its own message.
    """
    hints = typing.get_type_hints(kind)
    return {name: _value(value, hints[name]) if name in hints else value for name, value in data.items()}


def _value(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return as_meant(value, typing.cast(type, hint)) if isinstance(value, Mapping) else value
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if str in options:
        if _is_number(value):
            return _written(value)
        if options == (str,) and isinstance(value, list) and value and all(_is_number(one) for one in value):
            return ",".join(_written(one) for one in value)  # seeds = [1, 2, 3]
    lists = [option for option in options if typing.get_origin(option) is tuple]
    if lists and typing.get_args(lists[0])[-1] is Ellipsis:
        inner = typing.get_args(lists[0])[0]
        if isinstance(value, list):
            return [_value(one, inner) for one in value]
        if len(options) == 1 and isinstance(value, str | int | float) and not isinstance(value, bool):
            return [_value(value, inner)]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(number: float) -> str:
    """A number as one writes it: 3, 0.7."""
    return repr(number)
