"""Prompts with names, from a file: a JSON object {"name": "prompt", …} (SimpleTuner's user_prompt_library.json), or a list of
prompts, named or not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

SHAPE = 'write {"name": "prompt", …}, or a list of prompts or of {"name": "…", "prompt": "…"}'


def all_prompts(prompts: Sequence[str], library: str, option: str) -> dict[str, str]:
    """Returns {prompt: name} of a list and of a library's file ("" for none), each once; the list's have no names but the library's."""
    named = read_library(Path(library).expanduser(), option) if library else {}
    return {prompt: named.get(prompt, "") for prompt in [*prompts, *named]}


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
