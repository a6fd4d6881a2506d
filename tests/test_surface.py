"""The public surface, written down: a new or changed option, command or input changes tests/surface.json on purpose.

To record it anew after such a change: LOOM_RECORD_SURFACE=1 pytest tests/test_surface.py
"""

import dataclasses
import json
import os
import re
import typing
from itertools import zip_longest
from pathlib import Path

import typer

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.run import Section

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
RECORD = Path(__file__).with_name("surface.json")


def config_fields():
    """{section: {field: [type, default]}}; a name out of a table of choices.py counts as the list of names."""
    sections = {}
    for cls in vars(config_module).values():
        if isinstance(cls, type) and issubclass(cls, Section) and cls is not Section:
            hints, fields = typing.get_type_hints(cls), {}
            for field in dataclasses.fields(cls):
                table, hint = config_module.one_of(cls, field.name), hints[field.name]
                default = field.default if field.default is not dataclasses.MISSING else None
                kind = (
                    f"one of {list(table.choices)}"
                    if table
                    else str(getattr(hint, "__name__", hint) if isinstance(hint, type) else hint)
                )
                fields[field.name] = [re.sub(r"lora_loom\.[\w.]+\.", "", kind), repr(default)]
            sections[cls.__name__] = fields
    return sections


def commands():
    """{command, or "group command": its options}."""
    found = {}

    def collect(group, prefix):
        for name, command in group.commands.items():
            found[prefix + name] = sorted(option for parameter in command.params for option in parameter.opts)
            collect(command, f"{prefix}{name} ") if hasattr(command, "commands") else None

    collect(typer.main.get_command(app), "")
    return dict(sorted(found.items()))


def node_inputs():
    """{node: {socket: type}}; drop-down lists count as "COMBO", so that a host's own entries do not matter."""
    nodes = {}
    for name, cls in NODE_CLASS_MAPPINGS.items():
        groups = cls.INPUT_TYPES()
        inputs = {
            f"{group}.{key}": "COMBO" if isinstance(entry[0], list) else str(entry[0])
            for group in ("required", "optional")
            for key, entry in groups.get(group, {}).items()
        }
        widgets = [key.partition(".")[2] for key, kind in inputs.items() if kind in WIDGETS]
        nodes[name] = {"inputs": inputs, "outputs": [str(kind) for kind in cls.RETURN_TYPES], "widgets": widgets}
    return nodes


def surface():
    return {"config": config_fields(), "commands": commands(), "nodes": node_inputs()}


def moved_widgets(before, now):
    """{node: first widget that is not where it was}: saved workflows hold the values of widgets by position."""
    pairs = {name: (node["widgets"], now[name]["widgets"]) for name, node in before.items() if name in now}
    return {
        name: next(one for one, there in zip_longest(old, new) if one != there)
        for name, (old, new) in pairs.items()
        if new[: len(old)] != old
    }


def test_the_surface_changes_only_on_purpose():
    now = json.loads(json.dumps(surface()))
    assert not moved_widgets(json.loads(RECORD.read_text())["nodes"], now["nodes"]), (
        "an input is added behind all others"
    )
    if os.environ.get("LOOM_RECORD_SURFACE"):
        RECORD.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert now == json.loads(RECORD.read_text())


def test_a_widget_that_is_put_before_another_is_noticed():
    before = {"A": {"widgets": ["x", "y"]}}
    assert not moved_widgets(before, {"A": {"widgets": ["x", "y", "z"]}, "B": {"widgets": ["x"]}})
    for widgets in (["x", "z", "y"], ["y", "x"], ["x"]):
        assert moved_widgets(before, {"A": {"widgets": widgets}}).keys() == {"A"}


def test_the_option_list_in_the_docs_is_true():
    """docs/configuration.md is what `python -m scripts.write_config_docs` writes."""
    from scripts.write_config_docs import TARGET, page

    assert TARGET.read_text(encoding="utf-8") == page()
