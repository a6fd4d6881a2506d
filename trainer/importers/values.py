"""Values as other trainers write them: "true" and "1e-4" as texts, None, key=value lists, names of dtypes."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError

ABSENT = (None, "", "None", "null")
"""What some trainers write for an option that is not set."""
DTYPES = {
    "float16": ("fp16", "float16", "float_16", "half"),
    "bfloat16": ("bf16", "bfloat16", "bfloat_16"),
    "float32": ("no", "fp32", "float", "float32", "float_32", "tfloat_32"),
}
LYCORIS_KINDS = {"locon": "lora", "full": "diff", "diag-oft": "oft", "dylora": "lora"}
"""{algo of LyCORIS: network.kind here}, where they differ."""


def is_on(value: Any) -> bool:
    """Whether a switch is on, as a truth value or as a text."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "no", "off", "none", "null")
    return bool(value)


def number(name: str, value: Any) -> float:
    """A number, which may stand in quotes or be a fraction such as 1e-4/3. Raises ConfigError naming the option."""
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    above, slash, below = str(value).partition("/")
    try:
        if slash:
            return float(above) / float(below)
    except (ValueError, ZeroDivisionError):
        pass
    raise ConfigError(f"{name} = {value!r}: use a number")


def whole(name: str, value: Any) -> int:
    """A whole number; a fraction is cut. Raises ConfigError naming the option."""
    return int(number(name, value))


def dtype(name: str, value: Any) -> str:
    """Our name of a dtype. Raises ConfigError naming the option for an unknown one."""
    word = str(value).lower().removeprefix("torch.")
    for ours, theirs in DTYPES.items():
        if word in theirs:
            return ours
    raise ConfigError(f"{name} = {value!r}: use fp16, bf16 or fp32")


def literal(text: Any) -> Any:
    """A value of a key=value list: a number, a truth value, a list for "a,b", else the text itself."""
    if not isinstance(text, str):
        return list(text) if isinstance(text, tuple) else text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
    return list(value) if isinstance(value, tuple) else value


def pairs(name: str, given: Any) -> dict[str, Any]:
    """Returns {key: value} of "a=1 b=2,3", "a=1,b=2", ["a=1", …] or a table. Raises ConfigError naming the option."""
    if given in ABSENT:
        return {}
    if isinstance(given, Mapping):
        return {str(key): literal(value) for key, value in given.items()}
    entries = given if isinstance(given, list) else _split(str(given))
    found: dict[str, Any] = {}
    for entry in entries:
        if str(entry).strip() in ("", "..."):
            continue
        key, equals, value = str(entry).partition("=")
        if not equals:
            raise ConfigError(f"{name} = {given!r}: write key=value")
        found[key.strip().lstrip("-")] = literal(value.strip())
    return found


def _split(text: str) -> list[str]:
    """The key=value entries of a text: parted by blanks, or by commas that begin a new key."""
    found: list[str] = []
    for word in text.split():
        for piece in word.split(","):
            if "=" in piece or not found:
                found.append(piece)
            elif piece:
                found[-1] += f",{piece}"
    return found


def sides(name: str, value: Any) -> tuple[int, int]:
    """Returns (width, height) of 512, "512,768", "1024x768" or [512, 768]. Raises ConfigError naming the option."""
    parts: Iterable[Any] = value if isinstance(value, list) else str(value).lower().replace("x", ",").split(",")
    found = [whole(name, part) for part in parts]
    if len(found) not in (1, 2):
        raise ConfigError(f"{name} = {value!r}: use one number of pixels, or two")
    return found[0], found[-1]
