"""ComfyUI's answers about a prompt as plain messages: why it was rejected, why a node failed, what its outputs are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .workflow import Declared, Graph, choices, describe, nearest

MAX_CHARACTERS = 300
"""Longer messages of the server are cut."""
Error = Mapping[str, Any]
Record = Mapping[str, Any]
"""ComfyUI's record of an input error, and its history of a prompt. Custom nodes may put anything into both."""


def refusal(graph: Graph, answer: object, declared: Declared) -> str:
    """Why the server rejected a prompt: one line per problem, each with the node, the value and the remedy."""
    if not isinstance(answer, dict):
        return f"the server cannot read it: {str(answer)[:MAX_CHARACTERS]}"
    lines = [
        f"{describe(graph, node_id)}: {_problem(_complete(error, graph, node_id, declared), node_id)}"
        for node_id, report in (answer.get("node_errors") or {}).items()
        for error in report.get("errors", [])
    ]
    return "\n".join(dict.fromkeys(lines)) or _whole(graph, answer.get("error"), declared)


def _whole(graph: Graph, error: object, declared: Declared) -> str:
    """A problem of the prompt as a whole. The server names one unknown class at most, so all classes are looked up."""
    missing = [node_id for node_id, node in graph.items() if declared(node["class_type"]) is None]
    if missing:
        return "\n".join(
            f"{describe(graph, node_id)}: the server has no node {graph[node_id]['class_type']}: install its node pack there, and restart ComfyUI"
            for node_id in missing
        )
    if not isinstance(error, dict):
        return str(error)[:MAX_CHARACTERS]
    if error.get("type") == "prompt_no_outputs":
        return "the workflow has no output: add a node that saves or displays something, e.g. SaveImage"
    return ": ".join(str(error[part]) for part in ("message", "details") if error.get(part))[:MAX_CHARACTERS]


def _complete(error: Error, graph: Graph, node_id: str, declared: Declared) -> Error:
    """The error with the input's declaration, which the server leaves out where its list of options is long."""
    extra = error.get("extra_info") or {}
    if extra.get("input_config") or node_id not in graph:
        return error
    known = declared(graph[node_id]["class_type"]) or {}
    return {**error, "extra_info": {**extra, "input_config": known.get(str(extra.get("input_name")))}}


def _problem(error: Error, node_id: str) -> str:
    extra = error.get("extra_info") or {}
    name = extra.get("input_name") or error.get("details") or "an input"
    message = MESSAGES.get(str(error.get("type")))
    if message is not None:
        return message(name, extra, node_id)
    return ": ".join(str(error[part]) for part in ("message", "details") if error.get(part))[:MAX_CHARACTERS]


def _limits(extra: Error) -> str:
    config = extra.get("input_config") or [None, {}]
    limits = config[1] if len(config) > 1 and isinstance(config[1], dict) else {}
    low, high = limits.get("min"), limits.get("max")
    return f"use {low} to {high}" if low is not None and high is not None else "use a value in its range"


def _missing(name: str, extra: Error, node_id: str) -> str:
    return f"{name} is missing: connect it in the workflow, or give --set {node_id}.{name}=VALUE if it is a value"


def _unlisted(name: str, extra: Error, node_id: str) -> str:
    value, config = extra.get("received_value"), extra.get("input_config")
    offered = choices(list(config)) if config else None
    near = nearest(str(value), list(map(str, offered))) if offered else "it offers no option"
    return f"{name} = {value!r} is not an option that the server offers: {near}"


def _mismatch(name: str, extra: Error, node_id: str) -> str:
    config = extra.get("input_config") or ["?"]
    source = (extra.get("linked_node") or ["?"])[0]
    return (
        f"{name} requires {config[0]}, but node {source} outputs {extra.get('received_type')}: connect another output"
    )


MESSAGES: dict[str, Callable[[str, Error, str], str]] = {
    "required_input_missing": _missing,
    "value_not_in_list": _unlisted,
    "return_type_mismatch": _mismatch,
    "value_smaller_than_min": lambda name, extra, _: f"{name} = {extra.get('received_value')} is too small: {_limits(extra)}",
    "value_bigger_than_max": lambda name, extra, _: f"{name} = {extra.get('received_value')} is too large: {_limits(extra)}",
    "invalid_input_type": lambda name, extra, _: f"{name} = {extra.get('received_value')!r} is not of type {(extra.get('input_config') or ['value'])[0]}",
    "bad_linked_input": lambda name, extra, _: f"{name} = {extra.get('received_value')!r} is not a link: write [node id, slot]",
}  # fmt: skip
"""{ComfyUI's type of an input error: a function that words it}; other types keep the server's message."""


def failure(graph: Graph, record: Record) -> str:
    """Why a prompt that ran did not succeed; "" if it did."""
    status = record.get("status") or {}
    if status.get("status_str", "success") == "success":
        return ""
    for kind, data in status.get("messages") or []:
        if kind == "execution_interrupted":
            return f"interrupted on the server in {describe(graph, str(data.get('node_id')))}"
        if kind == "execution_error":
            message = str(data.get("exception_message", "")).strip()[:MAX_CHARACTERS]
            return (
                f"{describe(graph, str(data.get('node_id')))} failed: {data.get('exception_type', 'error')}: {message}"
            )
    return "the server reports a failure without a reason: see its log"


@dataclass(frozen=True)
class OutputFile:
    """A file on the server, in ComfyUI's terms."""

    node: str
    filename: str
    subfolder: str
    type: str


def output_files(record: Record) -> list[OutputFile]:
    """The output files of a prompt, in the order of the nodes and without duplicates."""
    files = [
        OutputFile(str(node_id), item["filename"], item.get("subfolder", ""), item.get("type", "output"))
        for node_id, item in _items(record)
        if isinstance(item, dict) and isinstance(item.get("filename"), str)
    ]
    return list(dict.fromkeys(files))


def output_texts(record: Record) -> dict[str, str]:
    """Returns {node id: the text that it displayed}."""
    texts: dict[str, list[str]] = {}
    for node_id, item in _items(record):
        if isinstance(item, str) and item.strip():
            texts.setdefault(str(node_id), []).append(item)
    return {node_id: "\n".join(lines) for node_id, lines in texts.items()}


def started_runs(record: Record) -> list[str]:
    """The names of the training runs that a prompt's nodes have started or joined."""
    lists = [output.get("loom_run") for output in (record.get("outputs") or {}).values() if isinstance(output, dict)]
    return list(
        dict.fromkeys(name for names in lists if isinstance(names, list) for name in names if isinstance(name, str))
    )


def _items(record: Record) -> Iterator[tuple[str, object]]:
    """Returns (node id, item) of everything that a prompt's nodes output."""
    for node_id, output in (record.get("outputs") or {}).items():
        for values in (output or {}).values():
            for item in values if isinstance(values, (list, tuple)) else []:
                yield node_id, item
