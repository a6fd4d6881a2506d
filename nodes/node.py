"""The base of all node classes, and types for what ComfyUI asks of a node class."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeAlias, TypedDict

from ..trainer.errors import ConfigError, LoomError, is_passing
from .words import in_the_graph, said_in_the_graph

Widget: TypeAlias = tuple[str | list[str], dict[str, object]]
"""An input: (socket type, or the values of a drop-down list; its options: tooltip, default, min, max, step, display_name)."""

HOLLOW = {
    "CLIP": "holds no text encoder: the file that it comes from has none. Load the text encoder of the base model with its own loader (CLIPLoader, DualCLIPLoader, …) and link that",
    "VAE": "holds no VAE: the file that it comes from has none. Load the VAE of the base model with VAELoader and link that",
    "MODEL": "holds no model: link the MODEL of a loader",
    "CLIP_VISION": "holds no image encoder: link that of CLIPVisionLoader",
}
"""{socket type: what an input of it is that was linked to nothing}. A checkpoint without a text encoder gives None."""


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
    when it runs, so that ComfyUI starts fast. Where ComfyUI has V3's declarations, `host/v3.py` makes them of these classes:
    what is said here by a new name has to be said there too.
    """

    TITLE: ClassVar[str]
    SEARCH_ALIASES: ClassVar[tuple[str, ...]]
    CATEGORY: ClassVar[str] = "LoRA Loom"
    FUNCTION: ClassVar[str] = "run"
    DESCRIPTION: ClassVar[str]
    RETURN_TYPES: ClassVar[tuple[str, ...]]
    RETURN_NAMES: ClassVar[tuple[str, ...]]
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]]
    OUTPUT_NODE: ClassVar[bool] = False

    @classmethod
    def INPUT_TYPES(cls) -> InputTypes:
        """The inputs, in the order in which saved workflows hold their values."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if method := vars(cls).get(cls.FUNCTION):
            setattr(cls, cls.FUNCTION, _in_plain_words(method))


def _in_plain_words(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, in which an exception that nobody foresaw is one of our errors. ComfyUI's own, and memory that ran out, pass.

    Errors and reports name the inputs of nodes where the engine names options.
    """

    @wraps(method)
    def guarded(self: "LoomNode", *args: Any, **kwargs: Any) -> Any:
        try:
            refuse_hollow(self, kwargs)
            return _reported(method(self, *args, **kwargs))
        except LoomError as error:
            said_in_the_graph(error)
            raise
        except Exception as error:
            if is_passing(error):
                raise
            said = f"{type(error).__name__}: {error}"
            raise LoomError(
                f"unexpected {said}. This is a mistake of LoRA Loom: ComfyUI's console says where; please report it"
            ) from error

    return guarded


def _reported(output: Any) -> Any:
    """What a node returns, in which a report that is shown under it, and an output that holds it, have the words of the graph."""
    if not (isinstance(output, dict) and output.get("ui", {}).get("text")):
        return output
    shown = [in_the_graph(text) for text in output["ui"]["text"]]
    said = dict(zip(output["ui"]["text"], shown, strict=True))
    result = tuple(said.get(value, value) if isinstance(value, str) else value for value in output["result"])
    return {"ui": {**output["ui"], "text": shown}, "result": result}


def refuse_hollow(node: LoomNode, given: Mapping[str, object]) -> None:
    """Raise ConfigError for a linked input behind which nothing is: None, or a VAE without a network."""
    hollow = [name for name, value in given.items() if getattr(value, "first_stage_model", value) is None]
    if not hollow:
        return
    declared = node.INPUT_TYPES()
    kinds = {**declared.get("required", {}), **declared.get("optional", {})}
    for name in hollow:
        if said := HOLLOW.get(str(kinds.get(name, ("",))[0])):
            raise ConfigError(f"{name} of {node.TITLE} {said}")
