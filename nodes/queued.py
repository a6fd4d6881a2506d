"""What a queued graph says of our nodes before they run: values that ComfyUI refuses.

ComfyUI drops a node with a value it refuses and runs the rest of the prompt. What was going to be done for the dropped node alone
is then done for nothing, so that whoever does it looks here first.
"""

import inspect
from collections.abc import Iterator, Mapping

from ..trainer.errors import ConfigError
from .node import LoomNode, Widget

OWN_TEXTS = ("PrimitiveString", "PrimitiveStringMultiline")
"""ComfyUI's nodes that give the text of their input `value`."""


def refuse_dropped(graph: Mapping[str, object] | None, cache: str | None) -> None:
    """Raise ConfigError if ComfyUI has dropped every LoomTrain that reads this LoomCache: nothing would train on what is encoded.

    Our own nodes are looked at; those of others are taken for right.
    """
    nodes = {number: node for number, node in (graph or {}).items() if isinstance(node, dict)}
    trains = [number for number, node in nodes.items() if _is_fed(node, str(cache))]
    reasons = [next(_refused(nodes, number, _known(), {str(cache)}), "") for number in trains]
    if reasons and all(reasons):
        raise ConfigError(f"nothing is encoded, for Loom Train LoRA cannot run: {reasons[0]}")


def text_of(graph: Mapping[str, object], value: object) -> str | None:
    """The text of an input: its own, or that of a primitive node it is linked to; None where only a node can say it."""
    if isinstance(value, str):
        return value
    node = graph.get(str(value[0])) if isinstance(value, list) and len(value) == 2 else None
    if isinstance(node, dict) and node.get("class_type") in OWN_TEXTS:
        return text_of(graph, node.get("inputs", {}).get("value"))
    return None


def _known() -> dict[str, type[LoomNode]]:
    """Our node classes by their ids."""
    return {node.__name__: node for node in LoomNode.__subclasses__()}


def _is_fed(node: Mapping[str, object], cache: str) -> bool:
    inputs = node.get("inputs")
    return node.get("class_type") == "LoomTrain" and isinstance(inputs, dict) and inputs.get("cache") == [cache, 0]


def _refused(
    graph: Mapping[str, dict[str, object]], number: str, known: Mapping[str, type[LoomNode]], seen: set[str]
) -> Iterator[str]:
    """Why a node, or one that it needs, will not run."""
    seen.add(number)
    node = graph[number]
    inputs, kind = node.get("inputs"), known.get(str(node.get("class_type")))
    if not isinstance(inputs, dict):
        return
    for value in inputs.values():
        source = str(value[0]) if isinstance(value, list) and len(value) == 2 else ""
        if source in graph and source not in seen:
            yield from _refused(graph, source, known, seen)
    if kind is None:
        return
    for reason in _wrong(kind, {name: text_of(graph, value) or value for name, value in inputs.items()}):
        yield f"{reason} ({kind.TITLE}, node {number})"


def _wrong(kind: type[LoomNode], values: Mapping[str, object]) -> Iterator[str]:
    """What ComfyUI refuses of a node's values, links aside."""
    declared = kind.INPUT_TYPES()
    check = getattr(kind, "VALIDATE_INPUTS", None)
    own = {
        name: values[name] for name in (inspect.signature(check).parameters if check else ()) if _is_value(values, name)
    }
    if check and isinstance(said := check(**own), str):
        yield said
    for name in declared.get("required", {}):
        if name not in values:
            yield f"{name} is missing"
    for name, made in {**declared.get("required", {}), **declared.get("optional", {})}.items():
        if name not in own and _is_value(values, name) and (reason := _wrong_value(made, values[name])):
            yield f"{name} = {values[name]!r}: {reason}"


def _is_value(values: Mapping[str, object], name: str) -> bool:
    return name in values and not isinstance(values[name], list)


def _wrong_value(made: Widget, value: object) -> str:
    kind, options = made
    if isinstance(kind, list):
        return "" if value in kind else f"one of {', '.join(str(one) for one in kind[:8])}"
    if kind not in ("INT", "FLOAT"):
        return ""
    try:
        number = value if isinstance(value, int | float) else float(str(value))
    except ValueError:
        return "a number"
    low, high = options.get("min"), options.get("max")
    if isinstance(low, int | float) and number < low:
        return f"at least {low}"
    return f"at most {high}" if isinstance(high, int | float) and number > high else ""
