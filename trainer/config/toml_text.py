"""Plain data as the text of a TOML file, and what is wrong with a text that is none."""

import json
import re
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


_PLACE = re.compile(r"\(at line (\d+)")
_HINTS = (
    (r"[\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb]", "use straight quotes"),
    (r"^[^=]*=\s*\"[^\"]*\\", "a path with backslashes stands in single quotes, or has / instead"),
    (r"^\s*[^=\s\[]+\s*:", "write name = value"),
    (r"^[^=]*=\s*(True|False|TRUE|FALSE|yes|no|on|off)\b", "write true or false"),
    (r"^[^=]*=\s*(None|null|nil)\b", "leave the line out"),
    (r"^[^=]*=.*[^:]//", "comments begin with #"),
    (r"^[^=]*=\s*\d{1,3}(,\d{3})+\b", "write numbers without commas"),
    (r"^[^=]*=.*,\s*$", "a line ends without a comma"),
    (r"^[^=]*=\s*0\d", "a text of digits, such as 007, stands in quotes"),
    (r"^[^=]*=\s*\d[\d.]*\s*[A-Za-z%]", "write the number alone, or a text in quotes"),
    (r"^[^=]*=\s*[\w./~]", "a text stands in quotes"),
    (r"^[^=]*=\s*([\"'])(?:(?!\1).)*$", "close the quote"),
)
"""(pattern of a line that is not TOML, what to write instead), the telling ones first."""


def toml_hint(text: str, error: object) -> str:
    """What to write instead in the line that an error of the TOML reader names, with that line; "" where it names none."""
    place = _PLACE.search(str(error))
    lines = text.splitlines()
    if place is None or not 0 < int(place[1]) <= len(lines):
        return ""
    line = lines[int(place[1]) - 1].strip()
    hint = (
        "it is set twice, leave one"
        if "overwrite" in str(error)
        else next((said for pattern, said in _HINTS if re.search(pattern, line)), "")
    )
    return f": {line[:80]!r}" + (f"; {hint}" if hint else "")
