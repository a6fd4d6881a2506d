"""Inputs of nodes: an option of the configuration becomes a widget with its range, default and tooltip."""

import dataclasses
import typing
from collections.abc import Collection, Mapping
from typing import Any

from ..trainer.config.aliases import current_options
from ..trainer.config.help_texts import texts
from .node import InputTypes, Widget
from .sockets.names import ALONE, AUTO

BIG = 2**31 - 1
BEFORE = "before"
"""Option of an input that is later than others and begins at another value than what a workflow without it means: that value.
The page gives it to nodes of workflows that were saved without the input (web/before.js)."""
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN")
EDIT_PROMPTS: Widget = (
    [AUTO, ALONE, "qwen-image-edit", "qwen-image-edit-plus"],
    {
        "default": AUTO,
        "tooltip": "How edit models encode a prompt with reference images: together with the images, as the nodes TextEncodeQwenImageEdit or TextEncodeQwenImageEditPlus (2509 and later) do, or the text alone (captions alone). auto: as Plus with the text encoder of Qwen-Image, else the text alone.",
    },
)
PROMPT_LIBRARY = 'More prompts from a JSON file, {"name": "prompt", …}, relative to ComfyUI\'s input directory. The names become labels.'


def widget(section: str, name: str, *, without: Collection[str] = (), **changes: object) -> Widget:
    """The input for a field of a configuration class; `changes` override default, min, max, step or tooltip.
    `without` are values that the graph has not.

    An input whose id is an older name of the field keeps its id, which saved workflows hold, and shows the present name.
    The class goes by its name, so that the configuration is imported when ComfyUI asks for inputs, not while ComfyUI starts.
    """
    from ..trainer.config import run as config

    cls = getattr(config, section)
    [present] = current_options(cls.table, {name: None})
    options: dict[str, object] = {"tooltip": texts(cls)[present]}
    if present != name:
        options["display_name"] = present
    field = next(field for field in dataclasses.fields(cls) if field.name == present)
    if field.default is not dataclasses.MISSING:
        options["default"] = field.default
    kind = typing.get_type_hints(cls)[present]
    if isinstance(changes.get("default"), float) and float in typing.get_args(kind):
        kind = float  # learning_rate: "auto" is an input of its own
    if one_of := config.one_of(cls, present):
        here = {value: choice.help for value, choice in one_of.choices.items() if value not in without}
        options["tooltip"] = f"{options['tooltip']} {'; '.join(f'{value}: {text}' for value, text in here.items())}."
        return list(here), {**options, **changes}
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind)), {**options, **changes}
    if kind is bool:
        return "BOOLEAN", {**options, **changes}
    if kind is int:
        return "INT", {"min": 0, "max": BIG, **options, **changes}
    if kind is float:
        return "FLOAT", {"min": 0.0, "max": 1e6, "step": 0.001, "round": False, **options, **changes}
    return "STRING", {**options, **changes}


def link(kind: str, tooltip: str) -> Widget:
    """An input that is linked to another node."""
    return kind, {"tooltip": tooltip}


def text(default: str, tooltip: str, *, multiline: bool = False, **changes: object) -> Widget:
    """A text field."""
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tooltip, **changes}


def seed(tooltip: str) -> Widget:
    """A seed that the frontend does not change after every prompt, which would start another run or encode again."""
    return "INT", {"default": 0, "min": 0, "max": 2**32 - 1, "control_after_generate": False, "tooltip": tooltip}


def reference_inputs(what: str) -> dict[str, Widget]:
    """Inputs for reference images, and how prompts are encoded with them; `what` is rendered with them: image, sample."""
    return {
        "reference": link(
            "IMAGE", f"For edit models: the reference image of every {what}. A batch makes one {what} per image."
        ),
        "reference_2": link(
            "IMAGE", "A second reference image, used together with reference: one for all, or one for each."
        ),
        "reference_3": link(
            "IMAGE", "A third reference image, used together with the other two: one for all, or one for each."
        ),
        "edit_prompts": EDIT_PROMPTS,
    }


def skip_inputs(section: str) -> dict[str, Widget]:
    """Inputs of the skip-layer guidance of SD3.5."""
    layers = (
        "Skip-layer guidance of SD3.5: numbers of the blocks that are left out, such as 7, 8, 9 of Medium. Empty: off."
    )
    return {
        "skip_layers": text("", layers, advanced=True),
        "skip_layer_scale": widget(section, "skip_layer_scale", min=0.01, max=20.0, step=0.1, advanced=True),
        "skip_layer_start": widget(section, "skip_layer_start", max=1.0, step=0.01, advanced=True),
        "skip_layer_end": widget(section, "skip_layer_end", max=1.0, step=0.01, advanced=True),
    }


def skip_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of skip-layer guidance under the names of the command line. Raises ConfigError."""
    from ..trainer.errors import ConfigError

    given = str(options.get("skip_layers") or "")
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"skip_layers = {given!r}: write numbers of blocks with commas between them, such as 7, 8, 9")
    names = ("skip_layer_scale", "skip_layer_start", "skip_layer_end")
    rest = {name: float(options[name]) for name in names if name in options}
    return {"skip_layers": tuple(int(part) for part in parts), **rest}


def folded(inputs: InputTypes, shown: tuple[str, ...]) -> InputTypes:
    """A node's inputs with every widget under "advanced" but the ones that most users decide about. Links stay as they are."""
    for group in (inputs.get("required", {}), inputs.get("optional", {})):
        for name, (kind, options) in group.items():
            if name not in shown and (isinstance(kind, list) or kind in WIDGET_TYPES):
                group[name] = kind, {**options, "advanced": True}
    return inputs
