"""A configuration as the text of a TOML file with comments."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Record
from .translation import DatasetTable

WIDTH = 44
"""Column at which comments begin, where the option is short enough."""


def toml_text(head: Sequence[str], tree: Record, comments: Mapping[str, str], datasets: Sequence[DatasetTable]) -> str:
    """The text of a file: `head` as a comment, the options of `tree` by table, each with its comment behind it."""
    lines = [f"# {line}".rstrip() for text in head for line in text.splitlines() or [""]]
    lines += ["", *(_line(name, value, comments.get(name, "")) for name, value in tree.items() if _is_plain(value))]
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += [
                "",
                f"[{name}]",
                *(_line(one, of, comments.get(f"{name}.{one}", "")) for one, of in value.items()),
            ]
    for table in datasets:
        lines += [
            "",
            "[[dataset]]",
            *(_line(one, of, table.comments.get(one, "")) for one, of in table.options.items()),
        ]
    return "\n".join(lines) + "\n"


def _is_plain(value: Any) -> bool:
    is_tables = isinstance(value, list) and any(isinstance(one, dict) for one in value)
    return not isinstance(value, dict) and not is_tables


def _line(name: str, value: Any, comment: str) -> str:
    text = f"{name} = {toml_value(value)}"
    return f"{text.ljust(WIDTH)} # {' '.join(comment.split())}" if comment else text


def toml_value(value: Any) -> str:
    """A value as TOML writes it. Texts are written as JSON's, whose escapes TOML reads."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {toml_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(one) for one in value) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" in text or "n" in text else f"{text}.0"
    return json.dumps(value, ensure_ascii=False)
