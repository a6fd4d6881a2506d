"""What a browser gets: workflows in the page's form, a panel that puts texts in as texts, sheets with markup escaped."""

import json
import re
from pathlib import Path

import pytest

from lora_loom.nodes import NODE_CLASS_MAPPINGS
from scripts.write_workflows import FOLDER, PLACES, STOCK, form, is_widget, page_file

WEB = Path(__file__).resolve().parents[2] / "web"
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|createContextualFragment|srcdoc"
)


@pytest.mark.parametrize("path", sorted(WEB.glob("*.js")), ids=lambda path: path.name)
def test_the_panel_never_reads_a_text_as_markup_or_code(path):
    source = path.read_text(encoding="utf-8")
    assert not MARKUP.search(source)
    assert "http://" not in source
    assert "https://" not in source  # nothing from elsewhere: the page may forbid it
    for name in re.findall(r'from "\./([^"]+)"', source):
        assert (WEB / name).is_file()


def test_every_workflow_has_both_forms_and_they_agree():
    stems = {path.name.removesuffix(".json").removesuffix(".api") for path in FOLDER.glob("*.json")}
    assert stems == set(PLACES)
    for name in PLACES:
        assert (FOLDER / f"{name}.json").read_text() == page_file(name), "run python -m scripts.write_workflows"


@pytest.mark.parametrize("name", sorted(PLACES))
def test_a_page_file_is_sound(name):
    page = json.loads((FOLDER / f"{name}.json").read_text())
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
    for node in nodes.values():
        assert node["type"] in NODE_CLASS_MAPPINGS or node["type"] in STOCK
        widgets = [entry for entry in form(node["type"])[0].values() if is_widget(entry)]
        assert len(node["widgets_values"]) == len(widgets)
        for value, entry in zip(node["widgets_values"], widgets, strict=True):
            if isinstance(entry[0], list) and node["type"] not in STOCK:
                assert value in entry[0]
            elif "min" in entry[1]:
                assert entry[1]["min"] <= value <= entry[1]["max"]
