"""The page of a real ComfyUI in a real browser: what a person sees and can do there."""

import json

import pytest

from lora_loom.trainer.sweep.html_page import to_html
from lora_loom.trainer.sweep.strip import Grid
from lora_loom.trainer.types import Cell
from scripts.workflow_layouts import LAYOUTS
from scripts.write_workflows import api_graph, default, form, is_widget

from .browsing import AXE, READABLE, load, open_tab, picture, ready, still, template

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def test_the_templates_are_offered(page, server):
    offered = page.evaluate("async () => (await (await fetch('/workflow_templates')).json())")
    assert sorted(offered["lora_loom"]) == sorted(layout.title for layout in LAYOUTS.values())
    for layout in LAYOUTS.values():
        answer = server.http.get(f"/api/workflow_templates/lora_loom/{layout.title}.jpg")
        assert answer.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_template_opens_whole_readable_and_at_the_size_it_was_laid_out_for(page, name):
    graph = template(name)
    load(page, graph)
    page.wait_for_function(f"window.app.graph._nodes.length === {len(graph['nodes'])}")
    still(page)  # the page fits the graph to the screen, and nodes settle, over some frames
    assert page.evaluate("window.app.canvas.ds.scale") >= READABLE
    nodes = page.evaluate(
        "window.app.graph._nodes.map(n => [n.id, n.type, [...n.size].map(Math.round), Boolean(n.has_errors && !n.constructor?.nodeData)])"
    )
    laid_out = {node["id"]: node for node in graph["nodes"]}
    for number, kind, size, is_unknown in nodes:
        assert kind == laid_out[int(number)]["type"]
        assert not is_unknown, f"{kind} is not registered"
        assert size == laid_out[int(number)]["size"], f"{kind} grew: the nodes below it are covered"


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_template_queues_the_graph_that_it_was_made_of(page, name):
    """What the page would send to the server: the API graph, which test_workflows.py runs, and the default of each other widget."""
    load(page, template(name))
    page.wait_for_function(f"window.app.graph._nodes.length === {len(template(name)['nodes'])}")
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    made = api_graph(name)
    assert queued.keys() == made.keys()
    for key, node in made.items():
        assert queued[key]["class_type"] == node["class_type"]
        inputs, _, _ = form(node["class_type"])
        others = {
            one: default(entry) for one, entry in inputs.items() if is_widget(entry) and one not in node["inputs"]
        }
        assert queued[key]["inputs"] == {**node["inputs"], **others}, node["class_type"]


BOXES = """() => [...document.querySelectorAll("[data-node-id]")].map((one) => {
  const { left, top, right, bottom } = one.getBoundingClientRect();
  return [one.dataset.nodeId, left, top, right, bottom].map((value, place) => (place ? Math.round(value) : value));
}).filter(([, left, , right]) => right > left)"""
"""Nodes that the page draws as elements: id, left, top, right, bottom in the window."""


def test_in_nodes_2_no_node_of_a_template_lies_over_another(page):
    page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    still(page)
    if not page.evaluate("Boolean(window.LiteGraph.vueNodesMode)"):
        pytest.skip("this frontend has no Nodes 2.0")
    covered = []
    for name in sorted(LAYOUTS):
        graph = template(name)
        load(page, graph)
        page.wait_for_function(f"({BOXES})().length === {len(graph['nodes'])}")
        still(page)
        boxes = page.evaluate(BOXES)
        kinds = {str(node["id"]): node["type"] for node in graph["nodes"]}
        for place, (one, left, top, right, bottom) in enumerate(boxes):
            for other, left2, top2, right2, bottom2 in boxes[place + 1 :]:
                if min(right, right2) - max(left, left2) > 2 and min(bottom, bottom2) - max(top, top2) > 2:
                    covered.append((name, kinds[one], kinds[other]))
    page.evaluate("window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    still(page)
    assert covered == []


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
def test_a_template_begins_beside_the_open_sidebar(server, browser, size):
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(str(server.http.base_url))
    ready(page)
    open_tab(page)
    load(page, template("train_sdxl"))
    page.wait_for_function("window.app.graph._groups.length === 4 && !window.app.graph.extra.loom_template")
    still(page)  # the page fits the graph to the screen over some frames
    edge = "const { ds } = window.app.canvas, [x, y] = window.app.graph._groups[0].pos; return [(x + ds.offset[0]) * ds.scale, (y + ds.offset[1]) * ds.scale]"
    left, top = page.evaluate(f"() => {{ {edge} }}")
    sidebar = page.locator(".loom-bench").bounding_box()
    assert left >= sidebar["x"] + sidebar["width"]
    assert 40 < top < size[1] / 2
    assert page.evaluate("window.app.canvas.ds.scale") >= READABLE
    page.close()


def test_links_have_the_colour_of_their_type_under_every_palette(page):
    load(page, template("train_sd"))
    for palette in ("light", "dark"):
        page.evaluate("name => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        still(page)
        colours = page.evaluate("window.app.canvas.constructor.link_type_colors")
        assert colours["LOOM_DATASET"] == "#6fbf73"
        assert colours["LOOM_CACHE"] == "#3fa7b5"
    variable = "getComputedStyle(document.documentElement).getPropertyValue('--color-datatype-LOOM_RUN').trim()"
    assert page.evaluate(variable) == "#e0a030"


def test_chosen_images_are_uploaded_and_become_the_folder(page, server):
    load(page, template("train_sd"))
    files = [
        {"name": "1.png", "mimeType": "image/png", "buffer": picture("red")},
        {"name": "1.txt", "mimeType": "text/plain", "buffer": b"a red square"},
        {"name": "x.html", "mimeType": "text/html", "buffer": b"<script>"},
    ]
    page.set_input_files(".loom-drop input[type=file]", files)
    page.wait_for_selector(".loom-drop >> text=1 image, 1 with a caption file", timeout=30_000)
    folder = page.evaluate(
        "window.app.graph._nodes.find(n => n.type === 'LoomDataset').widgets.find(w => w.name === 'folder').value"
    )
    assert folder.startswith("loom/images-")
    assert sorted(path.name for path in (server.base / "input" / folder).iterdir()) == ["1.png", "1.txt"]
    page.wait_for_function("document.querySelector('.loom-thumbs img')?.naturalWidth > 0")


def test_a_drop_on_the_dataset_adds_to_its_folder_and_makes_no_node(page, server):
    before = page.evaluate("window.app.graph._nodes.length")
    page.evaluate(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "2.png", { type: "image/png" }));
          document.querySelector(".loom-drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(picture("blue")),
    )
    page.wait_for_selector(".loom-drop >> text=2 images, 1 with a caption file", timeout=30_000)
    assert page.evaluate("window.app.graph._nodes.length") == before
    [folder] = (server.base / "input" / "loom").iterdir()
    assert (folder / "2.png").read_bytes() == picture("blue")


def write_run(server, name):
    folder = server.base / "output" / "lora_loom" / name
    for part in ("loras", "strips"):
        (folder / part).mkdir(parents=True)
    (folder / "loras" / f"{name}.safetensors").write_bytes(b"x")
    record = {"format": 2, "name": name, "state": "finished", "step": 20, "lora": f"{name}.safetensors"}
    (folder / "run.json").write_text(json.dumps({**record, "config": {"training": {"steps": 20}}, "fixed": {}}))
    return folder


def test_a_compare_page_shows_its_images_through_the_server(server, browser):
    folder = write_run(server, "compared")
    image = folder / "strips" / "a.png"
    image.write_bytes(picture("green"))
    cell = Cell(
        id="c1",
        checkpoint="base",
        strength=1.0,
        prompt="<b>a cat</b>",
        negative="",
        seed=1,
        guidance="cfg 4",
        image=image,
        settings={},
    )
    grid = Grid(columns=("base",), rows=("a cat",), cells={("a cat", "base"): cell}, title="Compared", legend="")
    (folder / "strips" / "strip.html").write_text(to_html([grid], "Compared"))
    opened = browser.new_page()
    opened.goto(f"{server.http.base_url}/lora_loom/runs/compared/files/strips/strip.html")
    opened.wait_for_function("document.images[0]?.naturalWidth === 32", timeout=30_000)
    assert opened.evaluate("window.origin") == "null"  # its script has no rights on the server
    a = opened.get_by_role("button", name="A: base, strength 1, cfg 4, seed 1: <b>a cat</b>")
    a.click()
    assert a.get_attribute("aria-pressed") == "true"
    opened.get_by_role("button", name="base, strength 1, cfg 4", exact=False).first.press(" ")
    opened.wait_for_selector("dialog[open] img")
    found = scan(opened)
    opened.keyboard.press("Escape")
    for scheme in ("dark", "light"):
        opened.emulate_media(color_scheme=scheme)
        found += scan(opened)
    opened.close()
    assert found == []


def scan(page):
    """What axe-core finds on a whole page whose policy admits no script but its own: it is run from outside."""
    if not AXE.is_file():
        return []
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return page.evaluate(
        "async () => (await window.axe.run()).violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 120)).slice(0, 3)])"
    )


def test_the_panel_names_the_file_of_a_finished_run_and_says_when_the_server_is_gone(page, server):
    write_run(server, "done")
    graph = template("train_sd")
    [train] = [node for node in graph["nodes"] if node["type"] == "LoomTrain"]
    train["widgets_values"][0] = "done"
    load(page, graph)
    page.wait_for_selector(".loom-panel[data-state=finished] >> text=lora_loom/done/done.safetensors", timeout=30_000)
    assert page.get_attribute(".loom-result a", "href").endswith("/lora_loom/runs/done/files/loras/done.safetensors")
    page.evaluate("import('/scripts/api.js').then(({ api }) => api.dispatchEvent(new CustomEvent('reconnecting')))")
    page.wait_for_selector(".loom-chip >> text=No connection")
    page.evaluate("import('/scripts/api.js').then(({ api }) => api.dispatchEvent(new CustomEvent('reconnected')))")
    page.wait_for_selector(".loom-chip >> text=Finished")


@pytest.mark.parametrize(("language", "rank", "dataset"), [("zh", "秩", "数据集"), ("ru", "ранг", "набор данных")])
def test_inputs_are_named_in_the_language_of_the_page(page, language, rank, dataset):
    def choose(name):
        page.evaluate("name => window.app.extensionManager.setting.set('Comfy.Locale', name)", name)
        page.reload()
        ready(page)
        load(page, template("train_sd"))
        still(page)

    choose(language)
    node = "window.app.graph._nodes.find((node) => node.type === '{}')"
    label = page.evaluate(f"{node.format('LoomTrain')}.widgets.find((widget) => widget.name === 'rank').label")
    socket = page.evaluate(
        f"{node.format('LoomCache')}.inputs.find((input) => input.name === 'dataset').localized_name"
    )
    choose("en")
    assert (label, socket) == (rank, dataset)
