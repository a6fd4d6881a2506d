"""What a browser gets: workflows in the page's form, a panel that puts texts in as texts, sheets with markup escaped."""

import json
import re
from pathlib import Path

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from lora_loom.nodes.sockets import names
from scripts.workflow_layouts import LAYOUTS, SCREEN
from scripts.write_blueprint import END, START, blueprint, content
from scripts.write_blueprint import FILE as BLUEPRINT
from scripts.write_node_docs import FOLDER as HELP
from scripts.write_node_docs import pages
from scripts.write_workflows import API, FOLDER, NOTE_ID, STOCK, form, is_widget, page_file, page_path

WEB = Path(__file__).resolve().parents[2] / "web"
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|createContextualFragment|srcdoc"
)


@pytest.mark.parametrize("path", sorted(WEB.rglob("*.js")), ids=lambda path: path.name)
def test_the_panel_never_reads_a_text_as_markup_or_code(path):
    source = path.read_text(encoding="utf-8")
    assert not MARKUP.search(source)
    assert "http://" not in source
    assert "https://" not in source  # nothing from elsewhere: the page may forbid it
    for name in re.findall(r'from "(\.[^"]+)"', source):
        assert "/scripts/" in name or (path.parent / name).is_file()


def test_every_socket_type_has_a_colour_of_its_own():
    types = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("LOOM_")}
    colours = dict(re.findall(r"(LOOM_\w+): \"(#[0-9a-f]{6})\"", (WEB / "wires.js").read_text(encoding="utf-8")))
    assert set(colours) == types
    assert len(set(colours.values())) == len(colours)


def test_every_workflow_has_both_forms_and_they_agree():
    assert {path.stem for path in API.glob("*.json")} == set(LAYOUTS)
    assert {path.stem for path in FOLDER.glob("*.json")} == {layout.title for layout in LAYOUTS.values()}
    for name in LAYOUTS:
        assert page_path(name).read_text() == page_file(name), "run python -m scripts.write_workflows"


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_template_has_a_thumbnail_and_fits_one_screen(name):
    assert page_path(name).with_suffix(".jpg").read_bytes().startswith(b"\xff\xd8")
    layout = LAYOUTS[name]
    boxes = [
        *layout.groups.values(),
        layout.note_at,
        *((x, y - 30, w, h + 30) for x, y, w, h in layout.places.values()),
    ]
    for side in (0, 1):
        assert max(box[side] + box[side + 2] for box in boxes) - min(box[side] for box in boxes) <= SCREEN[side] + 40


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_page_file_is_sound(name):
    page = json.loads(page_path(name).read_text())
    nodes = {node["id"]: node for node in page["nodes"]}
    assert len(nodes) == len(page["nodes"])
    for number, start, output, end, socket, kind in page["links"]:
        assert number in nodes[start]["outputs"][output]["links"]
        assert nodes[end]["inputs"][socket]["link"] == number
        assert nodes[start]["outputs"][output]["type"] == nodes[end]["inputs"][socket]["type"] == kind
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values()]
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, "two nodes lie on each other"
    assert nodes.pop(NOTE_ID)["type"] == "MarkdownNote"
    for node in nodes.values():
        assert node["type"] in NODE_CLASS_MAPPINGS or node["type"] in STOCK
        widgets = {key: entry for key, entry in form(node["type"])[0].items() if is_widget(entry)}
        assert len(node["widgets_values"]) == len(widgets)
        for value, (key, entry) in zip(node["widgets_values"], widgets.items(), strict=True):
            if (node["type"], key) == ("LoomBaseLora", "lora"):
                continue  # a file of the user's
            if isinstance(entry[0], list) and node["type"] not in STOCK:
                assert value in entry[0]
            elif "min" in entry[1]:
                assert entry[1]["min"] <= value <= entry[1]["max"]


def test_the_blueprint_is_one_node_whose_links_are_sound():
    assert BLUEPRINT.read_text(encoding="utf-8") == content(), "run python -m scripts.write_workflows"
    [outer], [inside] = blueprint()["nodes"], blueprint()["definitions"]["subgraphs"]
    assert outer["type"] == inside["id"]
    assert [socket["name"] for socket in outer["inputs"]] == [socket["name"] for socket in inside["inputs"]]
    nodes = {node["id"]: node for node in inside["nodes"]}
    ends = {START: inside["inputs"], END: inside["outputs"]}
    for link in inside["links"]:
        start, end = link["origin_id"], link["target_id"]
        given = ends[start] if start == START else nodes[start]["outputs"]
        taken = ends[end] if end == END else nodes[end]["inputs"]
        assert given[link["origin_slot"]]["type"] == taken[link["target_slot"]]["type"] == link["type"]
        sides = ((start, given[link["origin_slot"]]), (end, taken[link["target_slot"]]))
        assert all(
            link["id"] in (socket.get("linkIds") or socket.get("links") or [socket.get("link")]) for _, socket in sides
        )
    required = {
        name for node in nodes.values() for name, entry in form(node["type"])[0].items() if not is_widget(entry)
    }
    linked = {socket["name"] for node in nodes.values() for socket in node["inputs"] if socket["link"] is not None}
    assert {"model", "vae", "clip", "dataset", "cache"} <= linked & required
    assert len(outer["widgets_values"]) == len(outer["properties"]["proxyWidgets"]) <= 6


def test_every_node_has_a_help_page_made_of_its_present_texts():
    found = {path.name: path.read_text(encoding="utf-8") for path in HELP.glob("*.md")}
    assert found == pages(), "run python -m scripts.write_node_docs"


def test_search_finds_the_nodes_by_what_people_type():
    finds = {
        word: {name for name, cls in NODE_CLASS_MAPPINGS.items() if word in cls.SEARCH_ALIASES}
        for word in ("lora", "train", "finetune", "dreambooth", "dataset", "captions", "xyz")
    }
    assert all(finds.values())
    assert "LoomTrain" in finds["lora"] & finds["finetune"] & finds["dreambooth"]


def test_the_main_nodes_show_few_inputs_and_fold_the_others():
    for name in ("LoomDataset", "LoomCache", "LoomTrain", "LoomValidation", "LoomSweep"):
        groups = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
        widgets = [
            entry for group in ("required", "optional") for entry in groups.get(group, {}).values() if is_widget(entry)
        ]
        assert sum(not entry[1].get("advanced") for entry in widgets) <= 6
        assert len(widgets) > 6
