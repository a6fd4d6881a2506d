"""workflows/*.json: the graphs that open in ComfyUI's page, made of the API graphs beside them.

    python -m scripts.write_workflows

The API files (`NAME.api.json`) are the source: edit those, then run this. Titles and places are here.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "workflows"
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

PLACES: dict[str, dict[str, tuple[int, int, int, int]]] = {
    "train_sd": {"1": (0, 0, 320, 100), "2": (0, 150, 320, 420), "3": (380, 0, 400, 830), "4": (840, 0, 440, 730)},
    "train_flux": {
        "1": (0, 0, 320, 90), "2": (0, 140, 320, 140), "3": (0, 330, 320, 70), "4": (0, 450, 320, 420),
        "5": (380, 0, 400, 830), "6": (380, 890, 400, 200), "7": (840, 0, 440, 730),
    },
    "train_qwen_edit": {
        "1": (0, 0, 320, 90), "2": (0, 140, 320, 120), "3": (0, 310, 320, 70), "4": (0, 430, 320, 420), "5": (380, 0, 400, 830),
        "6": (380, 890, 400, 200), "7": (840, 0, 440, 730), "8": (840, 800, 440, 100), "9": (1340, 0, 300, 190), "10": (1340, 250, 300, 330),
        "11": (1700, 0, 340, 660), "12": (2100, 0, 640, 640),
    },
    "strip": {"1": (0, 0, 320, 100), "2": (0, 160, 320, 70), "3": (0, 290, 320, 200), "4": (380, 0, 340, 660), "5": (780, 0, 620, 640)},
    "apg_compare": {
        "1": (0, 0, 320, 100), "2": (0, 160, 320, 70), "3": (0, 290, 320, 200), "4": (380, 0, 320, 200), "5": (380, 250, 320, 200),
        "6": (760, 0, 340, 660), "7": (1160, 0, 620, 640),
    },
    "demo": {
        "1": (0, 0, 260, 130), "2": (0, 200, 260, 260), "3": (0, 520, 260, 230), "4": (310, 0, 420, 830), "5": (310, 900, 420, 500),
        "6": (790, 0, 440, 730), "7": (790, 800, 440, 100), "8": (1290, 0, 280, 190), "9": (1290, 250, 280, 220), "10": (1290, 530, 280, 220),
        "11": (1630, 0, 300, 680), "12": (1990, 0, 720, 680), "13": (1990, 740, 760, 820),
    },
}  # fmt: skip
"""{workflow: {node: (x, y, width, height)}}."""


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


def to_page(graph: dict[str, Any], places: dict[str, tuple[int, int, int, int]]) -> dict[str, Any]:
    """The page's form of an API graph."""
    links: list[list[Any]] = []
    nodes = {key: _node(key, graph[key], places[key], order) for order, key in enumerate(graph)}
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                _connect(links, nodes, (str(value[0]), value[1]), (key, name))
    return {
        "last_node_id": max(map(int, graph)), "last_link_id": len(links), "nodes": list(nodes.values()), "links": links,
        "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _node(key: str, node: dict[str, Any], place: tuple[int, int, int, int], order: int) -> dict[str, Any]:
    inputs, outputs, names = form(node["class_type"])
    return {
        "id": int(key), "type": node["class_type"], "pos": list(place[:2]), "size": list(place[2:]), "flags": {},
        "order": order, "mode": 0,
        "inputs": [{"name": name, "type": str(entry[0]), "link": None} for name, entry in inputs.items() if not is_widget(entry)],
        "outputs": [{"name": name, "type": kind, "links": [], "slot_index": i} for i, (name, kind) in enumerate(zip(names, outputs, strict=True))],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": [node["inputs"].get(name, default(entry)) for name, entry in inputs.items() if is_widget(entry)],
    }  # fmt: skip


def _connect(links: list[list[Any]], nodes: dict[str, Any], start: tuple[str, int], end: tuple[str, str]) -> None:
    output = nodes[start[0]]["outputs"][start[1]]
    slot = next(i for i, socket in enumerate(nodes[end[0]]["inputs"]) if socket["name"] == end[1])
    number = len(links) + 1
    links.append([number, int(start[0]), start[1], int(end[0]), slot, output["type"]])
    output["links"].append(number)
    nodes[end[0]]["inputs"][slot]["link"] = number


def page_file(name: str) -> str:
    graph = json.loads((FOLDER / f"{name}.api.json").read_text(encoding="utf-8"))
    return json.dumps(to_page(graph, PLACES[name]), indent=1) + "\n"


if __name__ == "__main__":
    for workflow in PLACES:
        (FOLDER / f"{workflow}.json").write_text(page_file(workflow), encoding="utf-8")
