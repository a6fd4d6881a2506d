"""The nodes in ComfyUI's V3 form, made of the classes that the V1 form exports. Nothing is declared here a second time."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ..node import LoomNode, Widget

_METHODS = {"VALIDATE_INPUTS": "validate_inputs", "IS_CHANGED": "fingerprint_inputs"}
"""Methods that a node class may have, and their names in V3."""


def extension(nodes: Iterable[type[LoomNode]]) -> Any:
    """Returns a ComfyExtension with a V3 class for each node class, in their order."""
    from comfy_api.latest import ComfyExtension

    made = [v3_class(node) for node in nodes]

    class Loom(ComfyExtension):  # type: ignore[misc]  # ComfyUI is not there to be checked against
        async def get_node_list(self) -> list[type]:
            return made

    return Loom()


def v3_class(node: type[LoomNode]) -> type:
    """Returns an io.ComfyNode that says and does what the node class does. ComfyUI calls its class methods on a locked copy of it,
    so that state is neither kept nor shared; the node classes have none."""
    from comfy_api.latest import io

    def define_schema(_cls: type) -> Any:
        return schema_of(node)

    members: dict[str, Any] = {
        "__doc__": node.__doc__,
        "__module__": node.__module__,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(_passed_on(node, node.FUNCTION)),
    }
    for mine, theirs in _METHODS.items():
        if hasattr(node, mine):
            members[theirs] = classmethod(_passed_on(node, mine))
    return type(node.__name__, (io.ComfyNode,), members)


def schema_of(node: type[LoomNode]) -> Any:
    """Returns the io.Schema of a node class: its inputs in their order with every option, hidden inputs, outputs, flags, names."""
    from comfy_api.latest import io

    inputs = node.INPUT_TYPES()
    hidden = inputs.get("hidden", {}).values()
    return io.Schema(
        node_id=node.__name__,
        display_name=node.TITLE,
        category=node.CATEGORY,
        description=node.DESCRIPTION,
        search_aliases=list(node.SEARCH_ALIASES),
        inputs=[
            _input(name, widget, optional=group == "optional")
            for group, members in (("required", inputs.get("required", {})), ("optional", inputs.get("optional", {})))
            for name, widget in members.items()
        ],
        outputs=[
            io.Custom(kind).Output(id=name, display_name=name, tooltip=tooltip)
            for kind, name, tooltip in zip(node.RETURN_TYPES, node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
        ],
        hidden=[io.Hidden(kind) for kind in hidden],
        is_output_node=node.OUTPUT_NODE,
        # A V1 node that asks for its id has it in the key of its cached result; a V3 node has it by this flag alone.
        # Without it, the second of two nodes with the same inputs would be given the first one's result.
        not_idempotent="UNIQUE_ID" in hidden,
    )


def _input(name: str, widget: Widget, *, optional: bool) -> Any:
    """An input with the options as they are: V3's own classes of widgets add options that nobody gave (multiline, multiselect)."""
    from comfy_api.latest import io

    kind, options = widget
    if isinstance(kind, list):
        kind, options = io.Combo.io_type, {**options, "options": kind}
    return io.Custom(kind).Input(name, optional=optional, extra_dict=options)


def _passed_on(node: type[LoomNode], method: str) -> Callable[..., Any]:
    """A function for a class method of the V3 class: the node's own method, called with the inputs and the hidden inputs it takes.

    It has the method's signature, in which ComfyUI reads which inputs `validate_inputs` answers for.
    """
    signature = inspect.signature(getattr(node, method))
    takes = signature.parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in takes.values())

    def passed_on(cls: Any, **inputs: Any) -> Any:
        hidden = _hidden(node, cls.hidden)
        taken = {name: value for name, value in hidden.items() if takes_all or name in takes}
        return getattr(node(), method)(**inputs, **taken)

    own = [one for name, one in takes.items() if name not in ("self", "cls")]
    first = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    passed_on.__signature__ = signature.replace(parameters=[first, *own])  # type: ignore[attr-defined]
    return passed_on


def _hidden(node: type[LoomNode], holder: Any) -> dict[str, Any]:
    """The hidden inputs of a call under the node's names for them."""
    from comfy_api.latest import io

    declared = node.INPUT_TYPES().get("hidden", {})
    return {name: getattr(holder, io.Hidden(kind).name) for name, kind in declared.items()}
