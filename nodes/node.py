"""The base of all node classes, and types for what ComfyUI asks of a node class."""

from typing import ClassVar, TypeAlias, TypedDict

Widget: TypeAlias = tuple[str | list[str], dict[str, object]]
"""An input: (socket type, or the values of a drop-down list; its options: tooltip, default, min, max, step, display_name)."""


class InputTypes(TypedDict, total=False):
    """What `INPUT_TYPES` returns. The keys are input ids, which saved workflows name; a label is the option display_name."""

    required: dict[str, Widget]
    optional: dict[str, Widget]
    hidden: dict[str, str]


class NodeOutput(TypedDict):
    """What an output node returns: what ComfyUI's frontend shows below it, and its outputs."""

    ui: dict[str, list[object]]
    result: tuple[object, ...]


class LoomNode:
    """A node of LoRA Loom. Its class name is its id in saved workflows; TITLE is what people read, and SEARCH_ALIASES what else they may type to find it.

    ComfyUI calls the method that FUNCTION names with the inputs of `INPUT_TYPES` by name. Each node imports what it needs
    when it runs, so that ComfyUI starts fast.
    """

    TITLE: ClassVar[str]
    SEARCH_ALIASES: ClassVar[tuple[str, ...]]
    CATEGORY: ClassVar[str] = "LoRA Loom"
    FUNCTION: ClassVar[str] = "run"
