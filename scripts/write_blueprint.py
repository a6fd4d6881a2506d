"""subgraphs/Train a LoRA.json: dataset, cache and training as one node, which ComfyUI's page lists among its subgraph blueprints.

    python -m scripts.write_workflows

ComfyUI serves every `subgraphs/*.json` of a pack below /global_subgraphs. The file holds one node whose type is the subgraph
that the file defines.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from .workflow_layouts import COLOURS
from .write_workflows import default, form, is_widget

TITLE = "Train a LoRA"
FILE = Path(__file__).resolve().parents[1] / "subgraphs" / f"{TITLE}.json"
DESCRIPTION = "Trains a LoRA on a folder of images: Loom Dataset, Loom Cache and Loom Train LoRA in one node. Connect a model, its CLIP and its VAE, and name the folder."
NODES = {
    1: ("LoomDataset", (0, 0, 380, 520), {"folder": "my-images"}),
    2: ("LoomCache", (440, 0, 340, 520), {}),
    3: ("LoomTrain", (840, 0, 440, 700), {}),
}
"""{id: (class, place, values of widgets that differ from their defaults)}."""
INSIDE = ((1, "dataset", 2, "dataset"), (2, "cache", 3, "cache"))
"""(id, output, id, input) of links between them."""
INPUTS = {
    "model": ((2, "model"), (3, "model")), "clip": ((2, "clip"),), "vae": ((2, "vae"),), "folder": ((1, "folder"),), "trigger": ((1, "trigger"),),
    "resolution": ((2, "resolution"),), "name": ((3, "name"),), "rank": ((3, "rank"),), "length": ((3, "length"),),
}  # fmt: skip
"""{input of the one node: (id, input) of those inside that it leads to}."""
OUTPUTS = {"run": (3, "run"), "lora_name": (3, "lora_name"), "model": (3, "model")}
START, END = -10, -20
"""Ids that the page gives to the two ends of a subgraph."""
LARGE_NODE = 420


def identifier(name: str) -> str:
    """The same UUID at every writing."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lora-loom/{TITLE}/{name}"))


def _inner(number: int) -> dict[str, Any]:
    kind, place, values = NODES[number]
    inputs, outputs, names = form(kind)
    colour, background = COLOURS[kind]
    fed = {name for targets in INPUTS.values() for node, name in targets if node == number}
    widgets = {name: entry for name, entry in inputs.items() if is_widget(entry)}
    shown = [name for name in inputs if name not in widgets or name in fed]
    return {
        "id": number, "type": kind, "pos": list(place[:2]), "size": list(place[2:]), "flags": {}, "order": number - 1, "mode": 0,
        "inputs": [
            {"name": name, "type": _type(inputs[name]), "link": None, **({"widget": {"name": name}} if name in widgets else {})}
            for name in shown
        ],
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in zip(names, outputs, strict=True)],
        "properties": {"Node name for S&R": kind, "loom_folded": True},
        "widgets_values": [values.get(name, default(entry)) for name, entry in widgets.items()],
        "color": colour, "bgcolor": background,
    }  # fmt: skip


def _type(entry: Any) -> str:
    return "COMBO" if isinstance(entry[0], list) else str(entry[0])


def _slot(sockets: list[dict[str, Any]], name: str) -> int:
    return next(place for place, socket in enumerate(sockets) if socket["name"] == name)


def blueprint() -> dict[str, Any]:
    """The whole file."""
    nodes = {number: _inner(number) for number in NODES}
    links: list[dict[str, Any]] = []

    def link(origin: tuple[int, int], target: tuple[int, int], kind: str) -> int:
        number = len(links) + 1
        links.append(
            {"id": number, "origin_id": origin[0], "origin_slot": origin[1], "target_id": target[0], "target_slot": target[1], "type": kind}
        )  # fmt: skip
        if origin[0] > 0:
            nodes[origin[0]]["outputs"][origin[1]]["links"].append(number)
        if target[0] > 0:
            nodes[target[0]]["inputs"][target[1]]["link"] = number
        return number

    for source, output, end, name in INSIDE:
        place = _slot(nodes[source]["outputs"], output)
        link((source, place), (end, _slot(nodes[end]["inputs"], name)), nodes[source]["outputs"][place]["type"])
    outer_inputs, ends_in = [], []
    for slot, (name, targets) in enumerate(INPUTS.items()):
        sockets = [(number, _slot(nodes[number]["inputs"], inner)) for number, inner in targets]
        socket = nodes[sockets[0][0]]["inputs"][sockets[0][1]]
        made = [link((START, slot), target, socket["type"]) for target in sockets]
        ends_in.append(
            {
                "id": identifier(f"in {name}"),
                "name": name,
                "type": socket["type"],
                "linkIds": made,
                "pos": [-140, 20 * slot],
            }
        )
        widget = {"widget": {"name": name}} if "widget" in socket else {}
        outer_inputs.append({"name": name, "type": socket["type"], "link": None, **widget})
    ends_out = []
    for slot, (name, (number, output)) in enumerate(OUTPUTS.items()):
        place = _slot(nodes[number]["outputs"], output)
        kind = nodes[number]["outputs"][place]["type"]
        made = [link((number, place), (END, slot), kind)]
        ends_out.append(
            {"id": identifier(f"out {name}"), "name": name, "type": kind, "linkIds": made, "pos": [1420, 20 * slot]}
        )
    return {
        "revision": 0, "last_node_id": len(NODES) + 1, "last_link_id": 0, "links": [], "version": 0.4, "config": {}, "extra": {},
        "nodes": [_outer(nodes, outer_inputs, ends_out)],
        "definitions": {"subgraphs": [{
            "id": identifier("subgraph"), "version": 1, "revision": 0, "config": {}, "name": TITLE, "description": DESCRIPTION,
            "category": "LoRA Loom", "state": {"lastGroupId": 0, "lastNodeId": len(NODES) + 1, "lastLinkId": len(links), "lastRerouteId": 0},
            "inputNode": {"id": START, "bounding": [-280, -20, 160, 40 + 20 * len(INPUTS)]},
            "outputNode": {"id": END, "bounding": [1400, -20, 160, 40 + 20 * len(OUTPUTS)]},
            "inputs": ends_in, "outputs": ends_out, "widgets": [], "nodes": list(nodes.values()), "groups": [], "links": links, "extra": {},
        }]},
    }  # fmt: skip


def _outer(
    nodes: dict[int, dict[str, Any]], inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The one node. Its widgets are those inside that its inputs lead to."""
    values = []
    for socket in inputs:
        if "widget" in socket:
            number, name = INPUTS[socket["name"]][0]
            entries = [inner for inner, entry in form(NODES[number][0])[0].items() if is_widget(entry)]
            values.append(nodes[number]["widgets_values"][entries.index(name)])
    return {
        "id": len(NODES) + 1, "type": identifier("subgraph"), "pos": [0, 0], "size": [LARGE_NODE, 220], "flags": {}, "order": 0, "mode": 0,
        "inputs": inputs, "outputs": [{"name": end["name"], "type": end["type"], "links": []} for end in outputs], "title": TITLE,
        "properties": {"proxyWidgets": [["-1", socket["name"]] for socket in inputs if "widget" in socket]},
        "widgets_values": values,
    }  # fmt: skip


def content() -> str:
    """The file's text."""
    return json.dumps(blueprint(), indent=1) + "\n"


def write() -> None:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(content(), encoding="utf-8")
