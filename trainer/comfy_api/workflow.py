"""Workflows in ComfyUI's API format: loading, changing inputs, one copy for each value of a sweep. No server is needed.

The format is {node id: {"class_type": …, "inputs": {name: value, or [node id, slot]}, "_meta": {"title": …}}}.
"""

import copy
import glob
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict, TypeGuard, cast

from ..config.toml import digest
from ..errors import ConfigError, did_you_mean
from ..sweep.axes import parse_numbers


class _NodeFields(TypedDict):
    class_type: str
    inputs: dict[str, object]


class Node(_NodeFields, total=False):
    """A node of a workflow."""

    _meta: dict[str, str]


Graph = dict[str, Node]
"""{node id: node}."""
Declared = Callable[[str], Mapping[str, object] | None]
"""A function from a node class to {input: ComfyUI's declaration}; None for an unknown class."""

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
    """A prompt that is to be queued."""

    label: str
    """A short name, valid as a file name and different for each prompt of a sweep; "" if there is only one prompt."""
    graph: Graph
    values: Mapping[str, object]
    """{"node.input": the value that the sweep set}."""

    @property
    def key(self) -> str:
        """A digest of the graph."""
        return digest(self.graph)


def load_workflow(path: Path) -> Graph:
    """Load a workflow. Raises ConfigError, with how to export it, for anything but API format."""
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"workflow: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"workflow: {path} is not a JSON file ({error}). {HOW_TO_EXPORT}") from error
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        raise ConfigError(
            f"workflow: {path} is a workflow of ComfyUI's frontend, which has positions and widgets but not the inputs that the server needs. {HOW_TO_EXPORT}"
        )
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]  # the form that is sent to /prompt
    if not isinstance(data, dict) or not data or not all(_is_node(node) for node in data.values()):
        raise ConfigError(f"workflow: {path} is not a ComfyUI workflow in API format. {HOW_TO_EXPORT}")
    graph = cast(Graph, data)
    _check_links(path, graph)
    return graph


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _check_links(path: Path, graph: Graph) -> None:
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value) and str(value[0]) not in graph:
                raise ConfigError(f"workflow: {path}: {describe(graph, node_id)}: {name} comes from node {value[0]}, which the file does not have")  # fmt: skip


def is_link(value: object) -> TypeGuard[list[object]]:
    """Whether an input's value is a link [node id, slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def title_of(graph: Graph, node_id: str) -> str:
    """The title of a node, or its class where it has none; "" if there is no such node."""
    node = graph.get(node_id)
    return ((node.get("_meta") or {}).get("title") or node["class_type"]) if node else ""


def describe(graph: Graph, node_id: str) -> str:
    """A node as messages name it: node 4 "Load LoRA"."""
    return f'node {node_id} "{title_of(graph, node_id)}"'


def find_input(graph: Graph, target: str, declared: Declared) -> Input:
    """The input that a text names: NODE.INPUT, where NODE is an id, title or class; or INPUT alone if only one node has it.

    INPUT alone may also be the beginning of a name: lora means lora_name. Raises ConfigError with the known names.
    """
    node, dot, name = target.rpartition(".")
    if not dot:
        return _only_owner(graph, name)
    node_id = _find_node(graph, node)
    known = [*graph[node_id]["inputs"], *(declared(graph[node_id]["class_type"]) or {})]
    if name not in known:
        raise ConfigError(f"{target}: {describe(graph, node_id)} has no input {name!r}: {did_you_mean(name, sorted(set(known)))}")  # fmt: skip
    return Input(node_id, name)


def _find_node(graph: Graph, name: str) -> str:
    """The id of the node that an id, title or class names. Raises ConfigError."""
    if name in graph:
        return name
    words = {node_id: ((node.get("_meta") or {}).get("title", ""), node["class_type"]) for node_id, node in graph.items()}  # fmt: skip
    for which in (0, 1):
        matches = [node_id for node_id, names in words.items() if names[which] == name]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(describe(graph, node_id) for node_id in matches)
            raise ConfigError(f"{name!r} names {len(matches)} nodes ({ids}): use the id")
    known = sorted({word for names in words.values() for word in names if word} | set(graph))
    raise ConfigError(f"the workflow has no node {name!r}: {did_you_mean(name, known)}")


def _only_owner(graph: Graph, name: str) -> Input:
    """The only widget with this name, or whose name begins with it and an underscore. Raises ConfigError."""
    widgets = [Input(node_id, key) for node_id, node in graph.items() for key, value in node["inputs"].items() if not is_link(value)]  # fmt: skip
    exact = [widget for widget in widgets if widget.name == name]
    matches = exact or [widget for widget in widgets if widget.name.startswith(f"{name}_")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(f"{widget.node}.{widget.name}" for widget in matches)
        raise ConfigError(f"{name!r} could be {names}: write NODE.INPUT")
    raise ConfigError(f"no node of the workflow has an input {name!r}: {did_you_mean(name, sorted({p.name for p in widgets}))}")  # fmt: skip


def choices(declaration: object) -> list[str] | None:
    """The options of a drop-down, in both of ComfyUI's formats; None for another type of input."""
    if not isinstance(declaration, list) or not declaration:
        return None
    if isinstance(declaration[0], list):
        return list(declaration[0])
    if declaration[0] == "COMBO" and len(declaration) > 1:
        return list(declaration[1].get("options", []))
    return None


def coerced(text: str, old: object, declaration: object) -> object:
    """A value in the type of an input: text for texts and drop-downs, otherwise JSON if it can be decoded."""
    kind = declaration[0] if isinstance(declaration, list) and declaration else None
    if kind == "STRING" or choices(declaration) is not None or (kind is None and isinstance(old, str)):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def split_setting(option: str, text: str) -> tuple[str, str]:
    """Returns (input, value) of a text INPUT=VALUE. Raises ConfigError."""
    target, equals, value = text.partition("=")
    if not equals or not target.strip():
        raise ConfigError(f"{option} {text!r}: write NODE.INPUT=VALUE, e.g. KSampler.steps=20")
    return target.strip(), value


def with_settings(graph: Graph, settings: Sequence[str], declared: Declared) -> Graph:
    """A copy of a workflow with settings NODE.INPUT=VALUE applied. Raises ConfigError."""
    changed = copy.deepcopy(graph)
    for setting in settings:
        name, text = split_setting("--set", setting)
        target = find_input(changed, name, declared)
        inputs = changed[target.node]["inputs"]
        inputs[target.name] = coerced(text, inputs.get(target.name), _declaration(changed, target, declared))
    return changed


def _declaration(graph: Graph, target: Input, declared: Declared) -> object:
    return (declared(graph[target.node]["class_type"]) or {}).get(target.name)


def plan_prompts(graph: Graph, sweeps: Sequence[str], declared: Declared) -> list[Planned]:
    """One prompt for each combination of the sweeps' values. An input that is named twice gets the values of both.

    Raises ConfigError.
    """
    axes: dict[Input, list[object]] = {}
    for sweep in sweeps:
        name, text = split_setting("--sweep", sweep)
        target = find_input(graph, name, declared)
        old = graph[target.node]["inputs"].get(target.name)
        values = axis_values(text, old, _declaration(graph, target, declared), name)
        axes[target] = list(dict.fromkeys([*axes.get(target, []), *values]))
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


def axis_values(text: str, old: object, declaration: object, target: str) -> Sequence[object]:
    """The values of one --sweep: options of a drop-down by name or pattern, numbers as in `0.7-1.3 [4]`, or one text.

    `old` is the input's present value, `target` the name used in messages. Raises ConfigError.
    """
    offered = choices(declaration)
    if offered is not None:
        return [value for part in _parts(text, offered) for value in _offered(part, offered, target)]
    kind = declaration[0] if isinstance(declaration, list) and declaration else None
    if kind in ("INT", "FLOAT") or (kind is None and isinstance(old, (int, float)) and not isinstance(old, bool)):
        numbers = parse_numbers(target, text)
        whole = kind == "INT" or isinstance(old, int)
        return [round(number) if whole else number for number in numbers]
    return [coerced(text, old, declaration)]


def _parts(text: str, offered: Sequence[str]) -> list[str]:
    return [text] if text in offered else [part.strip() for part in text.split(",") if part.strip()]


def _offered(pattern: str, offered: Sequence[str], target: str) -> list[str]:
    """The options of a drop-down that match a name or pattern. A file on this machine matches the option that its path ends in."""
    plain = {_posix(name): name for name in offered}
    if _posix(pattern) in plain:
        return [plain[_posix(pattern)]]
    matches = [name for path, name in plain.items() if PurePosixPath(path).match(_posix(pattern))]
    if not matches:
        files = [_posix(str(Path(file).resolve())) for file in sorted(glob.glob(pattern))]  # noqa: PTH207 - the pattern may be absolute
        matches = [name for file in files for path, name in plain.items() if file.endswith(f"/{path}")]
        if files and not matches:
            raise ConfigError(f"{target} = {pattern!r}: the server does not list {Path(files[0]).name} or any of these {len(files)} files: put them into its models folder")  # fmt: skip
    if not matches:
        raise ConfigError(f"{target} = {pattern!r} matches none of the {len(offered)} options that the server offers: {nearest(pattern, list(offered))}")  # fmt: skip
    return sorted(matches, key=_natural)


def nearest(word: str, offered: list[str]) -> str:
    """The end of a message: the nearest options, or all of them, or an excerpt if the list is long."""
    near = did_you_mean(word, offered)
    return near if len(near) <= 300 else f"there are {len(offered)}, e.g. {offered[0]!r} and {offered[-1]!r}"


def _posix(path: str) -> str:
    return path.replace("\\", "/")


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that orders numbers in a name by value, so that step 1000 follows step 900."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def labels(values: Sequence[object]) -> list[str]:
    """A short label for each value, valid as a file name and different from the others. Paths of LoRA files lose their folders."""
    words = [_slug(PurePosixPath(_posix(value)).stem if isinstance(value, str) and value.endswith(".safetensors") else str(value)) for value in values]  # fmt: skip
    if len(set(words)) < len(words):
        words = [f"{word}-{number}" for number, word in enumerate(words, 1)]
    return words


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60] or "value"
