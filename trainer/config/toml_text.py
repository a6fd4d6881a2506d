"""Plain data as the text of a TOML file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError


def to_toml(data: Mapping[str, Any]) -> str:
    """The TOML text that reads back as `data`; entries that are None are left out, for TOML has no word for them.

    Raises ConfigError for a value that TOML cannot hold.
    """
    return "\n".join(_table(data, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {name: value for name, value in table.items() if value is not None and not _is_table(value)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    for name, value in table.items():
        inner = (*path, _key(name))
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join(inner)}]", *_table(value, inner)]
        elif _is_table(value):
            for entry in value:
                lines += ["", f"[[{'.'.join(inner)}]]", *_table(entry, inner)]
    return lines


def _is_table(value: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return isinstance(value, Mapping) or (listed and all(isinstance(entry, Mapping) for entry in value))


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _text(name)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise ConfigError(f"{value!r} has no form in TOML: use text, numbers, lists or tables")
