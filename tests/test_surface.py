"""The public surface, written down: a new or changed option, command or input changes tests/surface.json on purpose.

To record it anew after such a change: LOOM_RECORD_SURFACE=1 pytest tests/test_surface.py
"""

import dataclasses
import json
import os
import re
from pathlib import Path

import typer

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.trainer.cli.main import app
from lora_loom.trainer.config import run as config_module
from lora_loom.trainer.config.run import Section

RECORD = Path(__file__).with_name("surface.json")


def config_fields():
    sections = {}
    for cls in vars(config_module).values():
        if isinstance(cls, type) and issubclass(cls, Section) and cls is not Section:
            fields = {}
            for field in dataclasses.fields(cls):
                default = field.default if field.default is not dataclasses.MISSING else None
                fields[field.name] = [
                    str(getattr(field.type, "__name__", field.type))
                    if isinstance(field.type, type)
                    else re.sub(r"lora_loom\.[\w.]+\.", "", str(field.type)),
                    repr(default),
                ]
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
        nodes[name] = {"inputs": inputs, "outputs": [str(kind) for kind in cls.RETURN_TYPES]}
    return nodes


def surface():
    return {"config": config_fields(), "commands": commands(), "nodes": node_inputs()}


def test_the_surface_changes_only_on_purpose():
    now = json.loads(json.dumps(surface()))
    if os.environ.get("LOOM_RECORD_SURFACE"):
        RECORD.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert now == json.loads(RECORD.read_text())


def test_the_option_list_in_the_docs_is_true():
    """docs/configuration.md is what `python -m scripts.write_config_docs` writes."""
    from scripts.write_config_docs import TARGET, page

    assert TARGET.read_text(encoding="utf-8") == page()
