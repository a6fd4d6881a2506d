"""The workflow of a cell of LoomSweep. The nodes that gave the sweep its model, text encoder and VAE are copied from the queue."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ....trainer.config.model import BaseLoraConfig
from ....trainer.config.run import GuidanceConfig
from ....trainer.data.cache.references import reference_placement
from ....trainer.families import edit_variants
from ....trainer.families.common.comfy_loaders import Link, Show, prompt_nodes
from ....trainer.runs.reference_images import Reference
from ....trainer.storage.tensor_file import read_lora
from ....trainer.sweep.cell_workflow import MakeGraph, cell_graph, with_base_loras
from ....trainer.types import Cell, Size
from ..backend.families import takes_guidance
from ..comfy_types import Graph, GraphNode, ModelPatcher
from ..encoding.reference_images import NAMES
from ..paths import is_inside, lora_folder, lora_root
from .sampling import changes_text

SOURCES = ("model", "clip", "vae")


def cell_graphs(
    graph: Graph | None,
    node_id: object,
    model: ModelPatcher,
    references: Sequence[Reference] = (),
    reading: str = "",
    base_loras: Sequence[BaseLoraConfig] = (),
) -> MakeGraph:
    """A function that makes the text entries of a cell's PNG. They are {} without a queued graph, and for a LoRA that no loader
    lists. `references` and `reading` are those of the renderer; `base_loras` are loaded into the model of the graph."""
    inputs = graph[str(node_id)]["inputs"] if graph and str(node_id) in graph else {}
    links = _links(inputs, SOURCES)
    if not graph or len(links) < len(SOURCES):
        return lambda cell, lora, guidance: {}
    is_distilled = takes_guidance(type(model.model).__name__)
    _, edit = edit_variants().get(reading, (None, None))
    sockets = list(_links(inputs, NAMES).values())
    above = upstream(graph, [str(link[0]) for link in [*links.values(), *sockets]])
    below = [(listed_name(Path(one.file)), one.strength) for one in base_loras if one.use == "always" and one.strength]
    if any(name is None for name, _ in below):
        return lambda cell, lora, guidance: {}
    nodes, links = with_base_loras(above, links, [(name or "", strength) for name, strength in below])
    numbers = {reference.digest: number for number, reference in enumerate(references)}

    def make(cell: Cell, lora: Path | None, guidance: GuidanceConfig) -> dict[str, str]:
        name = listed_name(lora) if lora is not None else ""
        if name is None:
            return {}
        reference_nodes: list[tuple[Show, Size]] = []
        if digest := cell.settings.get("reference"):
            number, size = numbers[digest], tuple(cell.settings["size"])
            sizes = [reference_placement(path, size).target for path in references[number].paths]
            reference_nodes = [
                (_picture(socket, number), target) for socket, target in zip(sockets, sizes, strict=True)
            ]
        prompt_node = prompt_nodes(links["vae"], reference_nodes, edit)
        both = lora is not None and changes_text(read_lora(lora))
        return cell_graph(
            cell, guidance, nodes, links, lora=name, lora_to_clip=both, distilled=is_distilled, prompt_node=prompt_node
        )

    return make


def _links(inputs: Mapping[str, object], names: Sequence[str]) -> dict[str, Link]:
    """The links among the named inputs: {name: [node id, output number]}."""
    return {name: value for name in names if isinstance(value := inputs.get(name), list)}


def _picture(socket: Link, number: int) -> Show:
    """A node that takes image `number` of the linked batch; of a batch with a single image for all, that image."""
    return lambda add, key: add(key, "ImageFromBatch", image=socket, batch_index=number, length=1)


def listed_name(lora: Path) -> str | None:
    """The name of a LoRA as LoraLoader lists it: of the file, or of the copy that the run keeps there; None for another file."""
    copy = lora_folder() / lora.parent.parent.name / lora.name  # output/lora_loom/<run>/loras/<file>
    for path in (lora, copy):
        if path.is_file() and is_inside(path, lora_root()):
            return os.path.relpath(os.path.realpath(path), os.path.realpath(lora_root()))
    return None


def upstream(graph: Graph, wanted: list[str]) -> dict[str, GraphNode]:
    """The wanted nodes of a graph and all nodes that they depend on."""
    found: dict[str, GraphNode] = {}
    while wanted:
        key = wanted.pop()
        if key in found or key not in graph:
            continue
        found[key] = {"class_type": graph[key]["class_type"], "inputs": dict(graph[key]["inputs"])}
        wanted += [
            str(value[0]) for value in graph[key]["inputs"].values() if isinstance(value, list) and len(value) == 2
        ]
    return found
