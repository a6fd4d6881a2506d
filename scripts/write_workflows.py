"""example_workflows/*.json: the graphs that open in ComfyUI's page, made of the API graphs in example_workflows/api.

    python -m scripts.write_workflows

The subgraph blueprint is written too (`write_blueprint`). The API files are the source: edit those, then run this. Names, places and notes are in `workflow_layouts`.
"""

import json
from pathlib import Path
from typing import Any

from .workflow_layouts import COLOURS, COMPARE, LAYOUTS, NOTE, Layout, Place

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
"""ComfyUI lists every JSON file of this folder as a template, so that the API files lie one folder further down."""
API = FOLDER / "api"
NOTE_ID = 100
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COMBO = (["…"], {})
STOCK: dict[str, tuple[dict[str, Any], list[str]]] = {
    "CheckpointLoaderSimple": ({"ckpt_name": COMBO}, ["MODEL", "CLIP", "VAE"]),
    "UNETLoader": ({"unet_name": COMBO, "weight_dtype": COMBO}, ["MODEL"]),
    "DualCLIPLoader": ({"clip_name1": COMBO, "clip_name2": COMBO, "type": COMBO, "device": COMBO}, ["CLIP"]),
    "CLIPLoader": ({"clip_name": COMBO, "type": COMBO, "device": COMBO}, ["CLIP"]),
    "VAELoader": ({"vae_name": COMBO}, ["VAE"]),
    "LoadImage": ({"image": COMBO}, ["IMAGE", "MASK"]),
    "PreviewImage": ({"images": ("IMAGE", {})}, []),
}
"""Inputs and outputs of the stock nodes that are used."""


def form(kind: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """(inputs, output types, output names) of a node class."""
    if kind in STOCK:
        inputs, outputs = STOCK[kind]
        return inputs, outputs, outputs
    from lora_loom.nodes import NODE_CLASS_MAPPINGS

    cls = NODE_CLASS_MAPPINGS[kind]
    groups = cls.INPUT_TYPES()
    types = [str(kind) for kind in cls.RETURN_TYPES]
    return (
        {**groups.get("required", {}), **groups.get("optional", {})},
        types,
        list(getattr(cls, "RETURN_NAMES", types)),
    )


def is_widget(entry: Any) -> bool:
    return isinstance(entry[0], list) or str(entry[0]) in WIDGETS


def default(entry: Any) -> Any:
    """What the page shows for a widget that the graph does not name."""
    fallback = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    return entry[1].get("default", entry[0][0] if isinstance(entry[0], list) else fallback[str(entry[0])])


def to_page(graph: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The page's form of an API graph."""
    links: list[list[Any]] = []
    nodes = {key: _node(key, graph[key], layout.places[key], order) for order, key in enumerate(graph)}
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                _connect(links, nodes, (str(value[0]), value[1]), (key, name))
    return {
        "last_node_id": NOTE_ID, "last_link_id": len(links), "nodes": [*nodes.values(), _note(layout, len(nodes))], "links": links,
        "groups": [
            {"id": number, "title": title, "bounding": list(place), "color": "#3f789e", "font_size": 24, "flags": {}}
            for number, (title, place) in enumerate(layout.groups.items(), 1)
        ],
        "config": {}, "extra": {"loom_template": True}, "version": 0.4,
    }  # fmt: skip


def _node(key: str, node: dict[str, Any], place: Place, order: int) -> dict[str, Any]:
    kind = node["class_type"]
    inputs, outputs, names = form(kind)
    colour, background = COLOURS.get(kind, COMPARE)
    return {
        "id": int(key), "type": kind, "pos": list(place[:2]), "size": list(place[2:]), "flags": {}, "order": order, "mode": 0,
        "inputs": [{"name": name, "type": str(entry[0]), "link": None} for name, entry in inputs.items() if not is_widget(entry)],
        "outputs": [{"name": name, "type": kind, "links": [], "slot_index": i} for i, (name, kind) in enumerate(zip(names, outputs, strict=True))],
        "properties": {"Node name for S&R": kind, "loom_folded": True},
        "widgets_values": [node["inputs"][name] if name in node["inputs"] else default(entry) for name, entry in inputs.items() if is_widget(entry)],
        "color": colour, "bgcolor": background,
    }  # fmt: skip


def _note(layout: Layout, order: int) -> dict[str, Any]:
    """A note belongs to the page alone: the API graph has none."""
    x, y, width, height = layout.note_at
    return {
        "id": NOTE_ID, "type": "MarkdownNote", "title": "Note", "pos": [x, y], "size": [width, height], "flags": {}, "order": order,
        "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [layout.note], "color": NOTE[0], "bgcolor": NOTE[1],
    }  # fmt: skip


def _connect(links: list[list[Any]], nodes: dict[str, Any], start: tuple[str, int], end: tuple[str, str]) -> None:
    output = nodes[start[0]]["outputs"][start[1]]
    slot = next(i for i, socket in enumerate(nodes[end[0]]["inputs"]) if socket["name"] == end[1])
    number = len(links) + 1
    links.append([number, int(start[0]), start[1], int(end[0]), slot, output["type"]])
    output["links"].append(number)
    nodes[end[0]]["inputs"][slot]["link"] = number


def api_graph(name: str) -> dict[str, Any]:
    graph: dict[str, Any] = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def page_path(name: str) -> Path:
    return FOLDER / f"{LAYOUTS[name].title}.json"


def page_file(name: str) -> str:
    return json.dumps(to_page(api_graph(name), LAYOUTS[name]), indent=1) + "\n"


if __name__ == "__main__":
    from .write_blueprint import write

    for workflow in LAYOUTS:
        page_path(workflow).write_text(page_file(workflow), encoding="utf-8")
    write()
