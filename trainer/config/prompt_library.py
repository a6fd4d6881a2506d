"""Prompts with names, from a file: a JSON object {"name": "prompt", …} (SimpleTuner's user_prompt_library.json), a list of
prompts, named or not, or sd-scripts' text file with a prompt and its options a line."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

SHAPE = 'write {"name": "prompt", …}, or a list of prompts or of {"name": "…", "prompt": "…"}'


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and what a file says of its image; None and 0 take what the options say."""

    text: str = ""
    name: str = ""
    negative: str | None = None
    width: int = 0
    height: int = 0
    steps: int = 0
    scale: float | None = None
    seed: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it has no options of its own."""
        return self == Prompt(text=self.text, name=self.name)


FLAGS = {"w": "width", "h": "height", "s": "steps", "l": "scale", "d": "seed", "n": "negative"}
"""{sd-scripts' option of a prompt: ours}."""


def listed_prompts(prompts: Sequence[str], library: str, option: str) -> list[Prompt]:
    """The prompts of a list and of a file ("" for none), each once; the list's have no names but the file's. Raises ConfigError."""
    path = Path(library).expanduser()
    if library and path.suffix.lower() == ".txt":
        return [*(Prompt(text=text) for text in dict.fromkeys(prompts)), *read_prompt_file(path, option)]
    named = read_library(path, option) if library else {}
    return [Prompt(text=text, name=named.get(text, "")) for text in dict.fromkeys([*prompts, *named])]


def all_prompts(prompts: Sequence[str], library: str, option: str) -> dict[str, str]:
    """Returns {prompt: name} of the same. Raises ConfigError for a prompt with options of its own, which a sweep compares instead."""
    found = listed_prompts(prompts, library, option)
    if own := [prompt.text for prompt in found if not prompt.is_plain]:
        raise ConfigError(
            f"{option} = {library!r}: {own[0]!r} has options of its own (--w, --s …); take them out, and name them as axes of the sweep (sizes, step_counts, seeds)"
        )
    return {prompt.text: prompt.name for prompt in found}


def read_prompt_file(path: Path, option: str) -> list[Prompt]:
    """The prompts of sd-scripts' text file: one a line, comments after #, options after the prompt. Raises ConfigError."""
    where = f"{option} = {str(path)!r}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found = [_line(line.strip(), f"{where}, line {number}") for number, line in enumerate(lines, 1) if _says(line)]
    if not found:
        raise ConfigError(f"{where} holds no prompt: write one a line")
    return found


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _line(line: str, where: str) -> Prompt:
    text, *given = re.split(r"(?:^|\s+)--(?=[A-Za-z])", line)
    values: dict[str, Any] = {}
    for one in given:
        flag, _, value = one.partition(" ")
        name, value = FLAGS.get(flag), value.strip()
        if name is None:
            known = ", ".join(f"--{flag}" for flag in FLAGS)
            raise ConfigError(f"{where}: --{flag} is not known; known are {known}")
        try:
            values[name] = value if name == "negative" else float(value) if name == "scale" else int(value)
        except ValueError as error:
            raise ConfigError(f"{where}: --{flag} {value} is no number") from error
        if name in ("width", "height", "steps") and values[name] < 1:
            raise ConfigError(f"{where}: --{flag} {value}: use 1 or more")
    if not text.strip():
        raise ConfigError(f"{where} has no prompt before its options")
    return Prompt(text=text.strip(), **values)


def read_library(path: Path, option: str) -> dict[str, str]:
    """Returns {prompt: name}, in the file's order; the name may be "". Raises ConfigError naming `option`, the file and the entry."""
    where = f"{option} = {str(path)!r}"
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}") from error
    if isinstance(data, Mapping):
        entries = [(name, value) for name, value in data.items()]
    elif isinstance(data, list):
        entries = [("", value) for value in data]
    else:
        raise ConfigError(f"{where}: {SHAPE}")
    found: dict[str, str] = {}
    for number, (key, value) in enumerate(entries, 1):
        name, prompt = _entry(key, value, f"{where}, entry {key or number}")
        if prompt in found:
            raise ConfigError(f"{where}: {prompt!r} occurs twice; take one out")
        if name and name in found.values():
            raise ConfigError(f"{where}: two prompts are called {name!r}; rename one")
        found[prompt] = name
    if not found:
        raise ConfigError(f"{where} holds no prompt: {SHAPE}")
    return found


def _entry(name: str, value: Any, where: str) -> tuple[str, str]:
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {"name", "prompt"})
        if unknown:
            raise ConfigError(f"{where}: {unknown[0]!r} is not known; an entry has a name and a prompt")
        name, value = value.get("name", name), value.get("prompt")
    if not isinstance(name, str) or not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {value!r} is not a prompt; {SHAPE}")
    return name.strip(), value.strip()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON keeps the last of several equal names without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return made
