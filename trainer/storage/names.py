"""Checks of names that become folders and files."""

import unicodedata
from pathlib import PurePath, PurePosixPath

from ..errors import ConfigError

RESERVED_NAMES = {
    "cache",
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
}
MAX_BYTES = 180
"""Most bytes of a name in UTF-8: file systems count bytes up to 255, and a file's name has the step and a temporary ending as well."""


def check_name(name: str) -> str:
    """The name of a run, which becomes the name of a folder and of files.

    Raises ConfigError for a name that could leave its folder or that some operating system does not accept.
    """
    safe = bool(name) and len(name) <= 100 and all(_is_of_a_word(c) or c in "-_ ." for c in name)
    safe = safe and (name[0].isalnum() or name[0] == "_")  # a mark belongs to the letter before it
    safe = safe and name[0] not in ". -" and name[-1] not in ". " and PurePath(name).name == name
    remedy = "use letters, digits, - _ . and spaces, at most 100, not starting or ending with a dot"
    if safe and len(name.encode()) > MAX_BYTES:
        raise ConfigError(f"name = {name!r} has {len(name.encode())} bytes in UTF-8: use at most {MAX_BYTES}")
    if not safe or name.split(".", maxsplit=1)[0].lower() in RESERVED_NAMES:
        raise ConfigError(f"name = {name!r}: {remedy}")
    return name


def _is_of_a_word(letter: str) -> bool:
    """Whether a character is a letter or digit of some script, a mark of one (Thai and Devanagari have vowels as such, macOS accents), or
    joins or parts two of them (Persian, Malayalam)."""
    return letter.isalnum() or unicodedata.category(letter)[0] == "M" or letter in "\u200c\u200d"


def safe_name(name: str) -> str:
    """A file name from a server, without folders and without characters that some file system does not accept."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c if c.isalnum() or c in "-_.+ ()" else "_" for c in last).strip(". ") or "file"
