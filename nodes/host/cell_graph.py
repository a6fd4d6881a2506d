"""The graph of a cell of LoomSweep: what the sweep took its model, text encoder and VAE from is copied out of the queued graph."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...trainer.cell_graph import MakeGraph, cell_graph
from ...trainer.config import GuidanceConfig
from ...trainer.records import Shot
from .families import known
from .paths import is_inside, lora_folder, lora_root

SOURCES = ("model", "clip", "vae")


def cell_graphs(graph: Mapping[str, Any] | None, node_id: Any, model: Any) -> MakeGraph:
    """What makes a cell's PNG entries: {} where the queued graph is not known, or a LoRA lies where no loader lists it."""
    inputs = graph[str(node_id)]["inputs"] if graph and str(node_id) in graph else {}
    if not graph or not all(isinstance(inputs.get(name), list) for name in SOURCES):
        return lambda shot, lora, guidance: {}
    links = {name: inputs[name] for name in SOURCES}
    family = known(type(model.model).__name__)
    is_distilled = family is not None and "guidance" in family.conditions
    above = upstream(graph, [str(link[0]) for link in links.values()])

    def make(shot: Shot, lora: Path | None, guidance: GuidanceConfig) -> dict[str, str]:
        name = listed_name(lora) if lora is not None else ""
        if name is None:
            return {}
        return cell_graph(shot, guidance, above, links, lora=name, distilled=is_distilled)

    return make


def listed_name(lora: Path) -> str | None:
    """The file as LoraLoader lists it: itself, or the copy that a run's checkpoint has there; none for one elsewhere."""
    copy = lora_folder() / lora.parent.parent.name / lora.name  # output/lora_loom/<run>/loras/<file>
    for path in (lora, copy):
        if path.is_file() and is_inside(path, lora_root()):
            return os.path.relpath(os.path.realpath(path), os.path.realpath(lora_root()))
    return None


def upstream(graph: Mapping[str, Any], wanted: list[str]) -> dict[str, Any]:
    """The nodes named, and all that they are linked to."""
    found: dict[str, Any] = {}
    while wanted:
        key = wanted.pop()
        if key in found or key not in graph:
            continue
        found[key] = {"class_type": graph[key]["class_type"], "inputs": dict(graph[key]["inputs"])}
        wanted += [
            str(value[0]) for value in graph[key]["inputs"].values() if isinstance(value, list) and len(value) == 2
        ]
    return found
