"""A workflow in API format: reading it, changing inputs, one copy per value of a sweep. No server is needed here.

API format is {node id: {"class_type": …, "inputs": {name: value, or [node id, slot]}, "_meta": {"title": …}}}.
"""

import copy
import glob
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..config.toml import digest
from ..errors import ConfigError, did_you_mean
from ..sweep.axes import parse_numbers

Graph = dict[str, Any]
Declared = Callable[[str], Mapping[str, Any] | None]
"""Node class to {input: ComfyUI's declaration}; None for an unknown class."""

HOW_TO_EXPORT = (
    "In ComfyUI choose Workflow > Export (API); where that is missing, switch on the settings' Dev mode and "
    "choose Save (API Format)"
)


@dataclass(frozen=True)
class Input:
    """One input of one node of a graph."""

    node: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A prompt to be queued."""

    label: str
    """Short, fit for a file name, different for each prompt of a sweep; empty where there is one prompt."""
    graph: Graph
    values: Mapping[str, Any]
    """What the sweep set, by "node.input"."""

    @property
    def key(self) -> str:
        """Equal for equal graphs."""
        return digest(self.graph)


def load_workflow(path: Path) -> Graph:
    """Raises ConfigError for anything but API format, with how to get it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"workflow: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"workflow: {path} is no JSON file ({error}). {HOW_TO_EXPORT}") from error
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        raise ConfigError(
            f"workflow: {path} is saved for ComfyUI's page, which keeps drawing and widgets but not what the server takes. {HOW_TO_EXPORT}"
        )
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]  # as it is sent to /prompt
    if not isinstance(data, dict) or not data or not all(_is_node(node) for node in data.values()):
        raise ConfigError(f"workflow: {path} is no ComfyUI workflow in API format. {HOW_TO_EXPORT}")
    _check_links(path, data)
    return data


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _check_links(path: Path, graph: Graph) -> None:
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] not in graph:
                raise ConfigError(f"workflow: {path}: {shown(graph, node_id)}: {name} comes from node {value[0]}, which the file does not have")  # fmt: skip


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def shown(graph: Graph, node_id: str) -> str:
    """A node for people: node 4 "Load LoRA"."""
    node = graph.get(node_id, {})
    title = (node.get("_meta") or {}).get("title") or node.get("class_type", "")
    return f'node {node_id} "{title}"'


def find_input(graph: Graph, place: str, declared: Declared) -> Input:
    """NODE.INPUT, NODE an id, title or class; or INPUT alone (lora means lora_name) if one node only has it.

    Raises ConfigError that names what there is.
    """
    node, dot, name = place.rpartition(".")
    if not dot:
        return _only_owner(graph, name)
    node_id = _find_node(graph, node)
    known = [*graph[node_id]["inputs"], *(declared(graph[node_id]["class_type"]) or {})]
    if name not in known:
        raise ConfigError(f"{place}: {shown(graph, node_id)} has no input {name!r}: {did_you_mean(name, sorted(set(known)))}")  # fmt: skip
    return Input(node_id, name)


def _find_node(graph: Graph, name: str) -> str:
    if name in graph:
        return name
    words = {node_id: ((node.get("_meta") or {}).get("title", ""), node["class_type"]) for node_id, node in graph.items()}  # fmt: skip
    for which in (0, 1):
        found = [node_id for node_id, names in words.items() if names[which] == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(shown(graph, node_id) for node_id in found)
            raise ConfigError(f"{name!r} is {len(found)} nodes ({ids}): use the id")
    known = sorted({word for names in words.values() for word in names if word} | set(graph))
    raise ConfigError(f"the workflow has no node {name!r}: {did_you_mean(name, known)}")


def _only_owner(graph: Graph, name: str) -> Input:
    """The one widget of this name, or whose name begins with it and an underscore."""
    widgets = [Input(node_id, key) for node_id, node in graph.items() for key, value in node["inputs"].items() if not is_link(value)]  # fmt: skip
    exact = [place for place in widgets if place.name == name]
    found = exact or [place for place in widgets if place.name.startswith(f"{name}_")]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{place.node}.{place.name}" for place in found)
        raise ConfigError(f"{name!r} could be {places}: write NODE.INPUT")
    raise ConfigError(f"no node of the workflow has an input {name!r}: {did_you_mean(name, sorted({p.name for p in widgets}))}")  # fmt: skip


def choices(declaration: Any) -> list[str] | None:
    """What a drop-down offers, in both of ComfyUI's forms; None for another kind of input."""
    if not isinstance(declaration, list) or not declaration:
        return None
    if isinstance(declaration[0], list):
        return list(declaration[0])
    if declaration[0] == "COMBO" and len(declaration) > 1:
        return list(declaration[1].get("options", []))
    return None


def coerced(text: str, old: Any, declaration: Any) -> Any:
    """A value as the input wants it: text stays text, everything else is JSON where it can be."""
    kind = declaration[0] if isinstance(declaration, list) and declaration else None
    if kind == "STRING" or choices(declaration) is not None or (kind is None and isinstance(old, str)):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def split_setting(option: str, text: str) -> tuple[str, str]:
    place, equals, value = text.partition("=")
    if not equals or not place.strip():
        raise ConfigError(f"{option} {text!r}: write NODE.INPUT=VALUE, e.g. KSampler.steps=20")
    return place.strip(), value


def with_settings(graph: Graph, settings: Sequence[str], declared: Declared) -> Graph:
    """A copy with NODE.INPUT=VALUE applied. Raises ConfigError."""
    changed = copy.deepcopy(graph)
    for setting in settings:
        place, text = split_setting("--set", setting)
        found = find_input(changed, place, declared)
        inputs = changed[found.node]["inputs"]
        inputs[found.name] = coerced(text, inputs.get(found.name), _declaration(changed, found, declared))
    return changed


def _declaration(graph: Graph, place: Input, declared: Declared) -> Any:
    return (declared(graph[place.node]["class_type"]) or {}).get(place.name)


def plan_prompts(graph: Graph, sweeps: Sequence[str], declared: Declared) -> list[Planned]:
    """One prompt per combination of the sweeps' values; an input named twice has the values of both. Raises ConfigError."""
    axes: dict[Input, list[Any]] = {}
    for sweep in sweeps:
        place, text = split_setting("--sweep", sweep)
        found = find_input(graph, place, declared)
        values = axis_values(text, graph[found.node]["inputs"].get(found.name), _declaration(graph, found, declared), place)  # fmt: skip
        axes[found] = list(dict.fromkeys([*axes.get(found, []), *values]))
    if not axes:
        return [Planned(label="", graph=graph, values={})]
    names = [labels(values) for values in axes.values()]
    planned = []
    for combination in itertools.product(*(range(len(values)) for values in axes.values())):
        changed, chosen = copy.deepcopy(graph), {}
        for target, number in zip(axes, combination, strict=True):
            value = axes[target][number]
            changed[target.node]["inputs"][target.name] = value
            chosen[f"{target.node}.{target.name}"] = value
        label = "_".join(words[number] for words, number in zip(names, combination, strict=True))
        planned.append(Planned(label=label, graph=changed, values=chosen))
    return planned


def axis_values(text: str, old: Any, declaration: Any, place: str) -> list[Any]:
    """Values of one --sweep: a drop-down's by name or pattern, numbers as in `0.7-1.3 [4]`, or one text."""
    offered = choices(declaration)
    if offered is not None:
        return [value for part in _parts(text, offered) for value in _offered(part, offered, place)]
    kind = declaration[0] if isinstance(declaration, list) and declaration else None
    if kind in ("INT", "FLOAT") or (kind is None and isinstance(old, (int, float)) and not isinstance(old, bool)):
        numbers = parse_numbers(place, text)
        whole = kind == "INT" or isinstance(old, int)
        return [round(number) if whole else number for number in numbers]
    return [coerced(text, old, declaration)]


def _parts(text: str, offered: Sequence[str]) -> list[str]:
    return [text] if text in offered else [part.strip() for part in text.split(",") if part.strip()]


def _offered(pattern: str, offered: Sequence[str], place: str) -> list[str]:
    """Entries of a drop-down that a name or pattern means; a file on this machine means the entry its path ends in."""
    plain = {_posix(name): name for name in offered}
    if _posix(pattern) in plain:
        return [plain[_posix(pattern)]]
    found = [name for path, name in plain.items() if PurePosixPath(path).match(_posix(pattern))]
    if not found:
        files = [_posix(str(Path(file).resolve())) for file in sorted(glob.glob(pattern))]  # noqa: PTH207 - the pattern may be absolute
        found = [name for file in files for path, name in plain.items() if file.endswith(f"/{path}")]
        if files and not found:
            raise ConfigError(f"{place} = {pattern!r}: the server does not list {Path(files[0]).name} or any of these {len(files)} files: put them into its models folder")  # fmt: skip
    if not found:
        raise ConfigError(f"{place} = {pattern!r} matches none of the {len(offered)} that the server offers: {nearest(pattern, list(offered))}")  # fmt: skip
    return sorted(found, key=_natural)


def nearest(word: str, offered: list[str]) -> str:
    """The end of a message; a long list is not told in full."""
    near = did_you_mean(word, offered)
    return near if len(near) <= 300 else f"there are {len(offered)}, e.g. {offered[0]!r} and {offered[-1]!r}"


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by size, so that step 1000 follows step 900."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def labels(values: Sequence[Any]) -> list[str]:
    """A short word for each value, fit for file names, all different: file names lose what they share as folders."""
    words = [_slug(PurePosixPath(_posix(value)).stem if isinstance(value, str) and value.endswith(".safetensors") else str(value)) for value in values]  # fmt: skip
    if len(set(words)) < len(words):
        words = [f"{word}-{number}" for number, word in enumerate(words, 1)]
    return words


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60] or "value"
