"""Command lines as people keep and paste them: bash, Windows' cmd and PowerShell, with continued lines, comments and variables."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

CONTINUED = re.compile(r"[ \t]*(?<!\S)[\\^`][ \t]*\r?\n|[\\^`][ \t]*\r?\n")
"""The end of a line that goes on: a backslash in bash, ^ in cmd, a backtick in PowerShell."""
UNMARKED = re.compile(r"(?<![\\^`\s])[ \t]*\r?\n(?=[ \t]*--\w)")
"""The end of a line that goes on without such a mark, as pages show it: the next one begins with an option."""
ASSIGNED = re.compile(r"^\s*(?:export\s+|set\s+|\$)?\"?(?P<name>[A-Za-z_]\w*)\s*(?P<plus>\+?)=\s*(?P<value>.*)$")
USED = re.compile(r"\$\{(?P<braces>\w+)\}|\$\((?:\$)(?P<call>\w+)\)|\$(?P<bare>[A-Za-z_]\w*)|%(?P<cmd>[A-Za-z_]\w*)%")
TRAINS = re.compile(
    r"_train_network\.py|\btrain_network\.py|--network_module|\b\w+_train\.py|\b(fine_tune|train_db)\.py"
)
"""What a command that trains has."""
SCRIPT = re.compile(r"[\w./\\:-]*\w+\.py$")


def variables(text: str) -> dict[str, str]:
    """Returns {name: value} of the assignments of a script, with the variables in them filled in; `NAME+=` appends."""
    found: dict[str, str] = {}
    for line in CONTINUED.sub(" ", text).splitlines():
        match = ASSIGNED.match(line)
        if match is None or line.lstrip().startswith(("#", "-", "REM ", "rem ")):
            continue
        value = filled(_unquoted(match["value"]), found)
        found[match["name"]] = f"{found.get(match['name'], '')}{value}" if match["plus"] else value
    return found


def filled(text: str, known: Mapping[str, str]) -> str:
    """A text with the variables that are known replaced by their values; others stay as they are written."""

    def value(match: re.Match[str]) -> str:
        name = next(name for name in match.groups() if name)
        return known.get(name, match[0])

    return USED.sub(value, text)


def _unquoted(text: str) -> str:
    """The value of an assignment: what is in its quotes, or what stands before a comment."""
    text = text.strip()
    for quote in ('"', "'"):
        if text.startswith(quote) and quote in text[1:]:
            return text[1 : text.index(quote, 1)]
    return re.split(r"\s+#", text)[0].rstrip('" ').strip()


def command(text: str) -> list[str]:
    """The words of the command that trains, in a text that may be a whole script. Empty if there is none."""
    known = variables(text)
    text = UNMARKED.sub(" ", text)
    for line in CONTINUED.sub(" ", text).splitlines():
        if line.lstrip().startswith(("#", "REM ", "rem ", "::")):
            continue
        spoken = filled(line, known)
        if TRAINS.search(spoken):
            return words(spoken)
    joined = CONTINUED.sub(" ", text).strip()
    return words(filled(joined, known)) if joined.startswith("--") else []  # a part of a command


def words(line: str) -> list[str]:
    """The words of a line, as a shell parts them."""
    # a backslash parts folders on Windows; only before a quote or a blank does it protect what follows
    protected = re.sub(r"\\(?![\"' ])", r"\\\\", line)
    try:
        return shlex.split(protected, comments=True)
    except ValueError:  # a quote that is never closed
        return protected.replace('"', "").split()


def options(words: Sequence[str], lists: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Returns (name of the script or "", {option: value}) of a command; `lists` names options that take several words.

    A flag without a value is true. What stands before the first option is the launcher and the script.
    """
    script = ""
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--"):
            if SCRIPT.fullmatch(word):
                script, found = re.split(r"[/\\]", word)[-1], {}  # options of accelerate stand before the script
            continue
        name, equals, value = word[2:].partition("=")
        following = [] if not equals else [value]
        while at < len(words) and not words[at].startswith("--") and (not following or name in lists):
            if SCRIPT.fullmatch(words[at]) and not following:
                break
            following.append(words[at])
            at += 1
        found[name] = following if name in lists else following[0] if following else True
    return script, found
