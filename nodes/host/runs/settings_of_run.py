"""The settings of a run for a person: what differs from the defaults, and all of it as a TOML file for the command line."""

from dataclasses import MISSING, Field, fields
from typing import Any

from ....trainer.config.aliases import current_tree, no_note
from ....trainer.config.run import TrainConfig
from ....trainer.config.section import Section
from ....trainer.config.toml import to_dict
from ....trainer.config.toml_text import to_toml
from ....trainer.runs.plan import SECTIONS
from ....trainer.runs.run_folder import RunFolder
from ....trainer.types import Record

HEAD = """# Settings of run {name}. Those at their defaults are left out.
# Train with it: lora-loom train FILE
"""
OF_GRAPH = """# It was trained in ComfyUI's graph, which passes the base model and the images: write here where they are.
"""
PLACES: Record = {"model": {"base": "/path/to/the/base model"}, "dataset": [{"folder": "/path/to/the/images"}]}

OWN_FOLDERS = {("output", "directory"), ("output", "loras"), ("output", "cache")}
"""Folders of ComfyUI: the command line has its own."""


def settings(folder: RunFolder) -> Record:
    """Returns {"changed": [{"name", "value", "default"}], "all": {"section.field": value}, "toml": text}. Raises RunError for a damaged run."""
    config = current_tree(folder.read().get("config", {}), no_note)
    usual = {section: _defaults(section) for section in SECTIONS}
    flat = {
        f"{section}.{name}": value
        for section in SECTIONS
        for name, value in (config.get(section) or {}).items()
        if (section, name) not in OWN_FOLDERS
    }
    changed = [
        {"name": name, "value": value, "default": usual[section].get(field)}
        for name, value in flat.items()
        for section, field in [name.split(".", 1)]
        if value != usual[section].get(field)
    ]
    return {"changed": changed, "all": flat, "toml": _toml(folder.name, config, changed)}


def _defaults(section: str) -> Record:
    [kind] = [_kind(field) for field in fields(TrainConfig) if field.name == section]
    return to_dict(kind())


def _kind(field: Field[Any]) -> type[Section]:
    assert field.default_factory is not MISSING, f"{field.name} has no default"
    return field.default_factory  # type: ignore[return-value]


def _toml(name: str, config: Record, changed: list[Record]) -> str:
    tree: Record = {"name": name}
    own = {part: config[part] for part in ("model", "dataset", "dataset_files", "data", "text") if config.get(part)}
    from_graph = not own.get("model", {}).get("base")
    tree |= {**own, **PLACES, "model": {**own.get("model", {}), **PLACES["model"]}} if from_graph else own
    for one in changed:
        section, field = one["name"].split(".", 1)
        tree.setdefault(section, {})[field] = one["value"]
    return HEAD.format(name=name) + (OF_GRAPH if from_graph else "") + "\n" + to_toml(tree)
