"""The workbench in a real browser: a run from its start to a loader with its file, captions, themes, sizes, accessibility.

With LOOM_SCREENS=1 the same tests draw the pictures of docs/images.
"""

import json
import os
import uuid

import pytest

from .browsing import AXE, load, open_tab, picture, ready, still, template
from .server import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


STEPS = 6
TABS = ("Progress", "Samples", "Compare", "Settings", "Log")


def screen(page, name):
    if os.environ.get("LOOM_SCREENS"):
        page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")


def small_demo(name):
    """The demo's graph as far as LoomTrain, with few steps and another rank than the default, which Settings then shows."""
    graph = json.loads((ROOT / "example_workflows" / "api" / "demo.json").read_text())
    kept = {number: node for number, node in graph.items() if number in "123456"}
    for node in kept.values():
        if node["class_type"] == "LoomTrain":
            node["inputs"] |= {
                "name": name,
                "rank": 8,
                "steps": STEPS,
                "save_every": 3,
                "batch_size": 2,
                "length": "value",
            }
        if node["class_type"] == "LoomValidation":
            node["inputs"] |= {"every": 3, "steps": 2, "width": 64, "height": 64}
        if node["class_type"] == "LoomCache":
            node["inputs"]["resolution"] = 64
    return kept


def long_demo(name):
    """The same, without samples and with so many steps that it does not end before the test."""
    graph = small_demo(name)
    del graph["5"], graph["6"]["inputs"]["validation"]
    graph["6"]["inputs"] |= {"steps": 4000, "save_every": 1000}
    return graph


KEPT = """(name) => [localStorage, sessionStorage].some((store) =>
  Object.entries(store).some(([key, value]) => !key.startsWith("lora_loom") && value.includes(name)))"""
"""ComfyUI has kept a draft of the graph of this name, which it does after a pause."""


def set_(page, key, value):
    page.evaluate("([key, value]) => window.app.extensionManager.setting.set(key, value)", [key, value])
    still(page)


def violations(page, *places):
    """What axe-core finds in our own elements."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate(
        "async places => (await window.axe.run({ include: places.filter((one) => document.querySelector(one)).map((one) => [one]) })).violations"
        ".map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 120) + ' ' + (node.any[0]?.message ?? '')).slice(0, 3)])",
        list(places),
    )
    return [tuple(one) for one in found]


@pytest.fixture(scope="module")
def trained(page, server):
    """A run that was started by the button, and has ended."""
    for name in ("first", "second"):
        page.evaluate("([graph, name]) => window.app.loadApiJson(graph, name)", [small_demo(name), name])
        still(page)
        page.evaluate("window.app.queuePrompt(0)")
        if name == "first":
            page.wait_for_selector(".loom-ticker:visible", timeout=120_000)
        server.wait_state(name, "finished", timeout=240)
    return page


def test_a_run_is_followed_from_its_start_to_a_loader_with_its_file(trained, server):
    page = trained
    page.wait_for_selector("text=LoRA trained", timeout=30_000)
    open_tab(page)
    page.wait_for_selector(".loom-row[data-state=finished] >> text=first")
    assert page.locator(".loom-row .loom-thumb img").count() == 2
    screen(page, "workbench-runs")
    page.click(".loom-open >> text=first")
    page.wait_for_selector(".loom-chart canvas")
    assert f"{STEPS} / {STEPS}" in page.inner_text(".loom-fact-list")
    page.wait_for_selector(".loom-memory-bar")
    assert "LoRA modules changed" in page.inner_text(".loom-fact-list >> nth=-1")
    screen(page, "workbench-progress")
    page.click(".loom-note-field button")
    with page.expect_response(lambda answer: "<b>good</b>" in (answer.request.post_data or "")):
        page.fill("[aria-label='Note on this run']", "the <b>good</b> one")
    note = server.base / "output" / "lora_loom" / "first" / "note.json"
    assert json.loads(note.read_text()) == {"note": "the <b>good</b> one", "starred": True}
    page.click(".loom-tabs >> text=Samples")
    page.wait_for_function("document.querySelectorAll('.loom-samples .loom-cell img').length >= 2")
    screen(page, "workbench-samples")
    page.click(".loom-tabs >> text=Compare")
    assert "step 3" in page.inner_text(".loom-compare-tab")
    page.click(".loom-compare-tab >> text=Use this one >> nth=-1")
    page.wait_for_function("window.app.graph._nodes.some((node) => node.type === 'LoraLoaderModelOnly')")
    value = page.evaluate(
        "window.app.graph._nodes.find((node) => node.type === 'LoraLoaderModelOnly').widgets[0].value"
    )
    assert value.replace("\\", "/") == "lora_loom/first/first.safetensors"
    page.click(".loom-tabs >> text=Settings")
    page.wait_for_selector(".loom-settings >> text=rank")
    page.click(".loom-tabs >> text=Log")
    page.wait_for_function("document.querySelector('.loom-log-lines')?.textContent.includes('step')")
    page.click(".loom-detail >> text=Runs")
    for name in ("first", "second"):
        page.check(f"[aria-label='Choose {name} to compare']")
    page.click(".loom-list-head >> text=Compare")
    page.wait_for_selector(".loom-compare .loom-chart canvas >> nth=0")
    page.click(".loom-compare >> text=Runs")


def test_a_narrow_sidebar_shows_every_tab_and_the_name_of_a_folder(trained, server):
    page = trained
    (server.base / "input" / "loom" / "images-20261129-070347").mkdir(parents=True)
    (server.base / "input" / "loom" / "images-20261129-070347" / "a.png").write_bytes(picture("red"))
    page.set_viewport_size({"width": 1280, "height": 800})
    open_tab(page)
    page.click(".loom-open >> text=first")
    page.wait_for_selector(".loom-detail")
    wide = "(() => { const box = document.querySelector('.loom-place'); return box.scrollWidth - box.clientWidth; })()"
    keys = "[...document.querySelectorAll('.loom-chart-tall .loom-chart-legend button')].map((one) => [one.textContent, getComputedStyle(one, '::before').opacity])"
    for tab in TABS:
        page.click(f".loom-detail .loom-tabs >> text={tab}")
        still(page)
        assert page.evaluate(wide) == 0, tab
        if tab == "Progress":
            assert len({opacity for _, opacity in page.evaluate(keys)}) > 1, "loss and its smoothed curve look alike"
    page.click(".loom-detail >> text=Runs")
    page.click(".loom-bench > .loom-tabs >> text=Data")
    page.wait_for_selector(".loom-card")
    assert page.locator(".loom-data select").bounding_box()["width"] > 220
    page.click(".loom-bench > .loom-tabs >> text=Runs")
    page.set_viewport_size({"width": 1920, "height": 1080})


def test_after_a_reload_nodes_and_list_show_what_they_showed(trained):
    page = trained
    page.evaluate("([graph, name]) => window.app.loadApiJson(graph, name)", [small_demo("first"), "first"])
    saved = page.evaluate("window.app.graph.serialize()")
    name = str(uuid.uuid4())
    load(page, {**saved, "id": name})  # as saving does; a graph in API form has no name of its own
    still(page)
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_selector(".loom-report >> text=images", timeout=120_000)
    page.wait_for_function(KEPT, arg=name, timeout=60_000)
    page.reload()
    ready(page)
    page.wait_for_selector(".loom-report >> text=images", timeout=60_000)
    page.wait_for_selector(".loom-panel[data-state=finished]", timeout=60_000)
    open_tab(page)
    page.wait_for_selector(".loom-row >> text=second")


def test_a_run_is_renamed_and_deleted_to_the_trash(trained, server):
    page = trained
    open_tab(page)
    page.click(".loom-open >> text=second")
    page.click(".loom-menu >> text=Rename")
    page.fill(".loom-question input", "renamed")
    page.click(".loom-question >> text=Rename >> nth=-1")
    page.wait_for_selector(".loom-detail h3 >> text=renamed")
    page.click(".loom-menu >> text=Delete")
    page.click("text=Move the run and its LoRA files")
    page.wait_for_function(
        "![...document.querySelectorAll('.loom-row-name')].some((one) => one.textContent === 'renamed')"
    )
    assert not (server.base / "models" / "loras" / "lora_loom" / "renamed").exists()
    assert list((server.base / "output" / "lora_loom" / ".trash").iterdir())


def test_a_deleted_run_is_brought_back_and_the_trash_emptied(trained, server):
    page = trained
    open_tab(page)
    page.click("text=Trash (1)")
    page.wait_for_selector(".loom-trash .loom-result >> text=renamed")
    assert violations(page, ".loom-trash") == []
    page.click(".loom-trash >> text=Restore")
    page.wait_for_selector(".loom-row-name >> text=renamed")
    assert list((server.base / "models" / "loras" / "lora_loom" / "renamed").glob("*.safetensors"))
    page.keyboard.press("Escape")
    page.click(".loom-open >> text=renamed")
    page.click(".loom-menu >> text=Delete")
    page.click("text=Move the run and its LoRA files")
    page.click("text=Trash (1)")
    page.click(".loom-trash >> text=Empty the trash")
    page.click(".loom-question >> text=Delete for good")
    page.wait_for_selector(".loom-trash >> text=Nothing is in the trash.")
    page.keyboard.press("Escape")
    assert list((server.base / "output" / "lora_loom" / ".trash").iterdir()) == []
    assert server.http.post("/lora_loom/trash/empty", content="{}").status_code == 403


def test_captions_are_saved_as_they_are_written(page, server):
    folder = server.base / "input" / "loom" / "cards"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(picture("red" if name == "a" else "blue"))
    (folder / "a.txt").write_text("a cat, sofa")
    open_tab(page)
    page.click(".loom-bench > .loom-tabs >> text=Data")
    page.select_option(".loom-data select", "loom/cards")
    page.wait_for_selector(".loom-card >> nth=1")
    page.fill("[aria-label='Caption of b.png']", "a cat")
    page.wait_for_selector(".loom-saved >> text=Saved")
    assert (folder / "b.txt").read_text() == "a cat"
    page.fill("[aria-label='Find in captions and names']", "a cat")
    page.fill("[aria-label='Replace with']", "<b>sks</b>")
    page.click(".loom-tools >> text=Replace")
    page.wait_for_selector("text=2 captions changed")
    assert [(folder / f"{name}.txt").read_text() for name in "ab"] == ["<b>sks</b>, sofa", "<b>sks</b>"]
    page.fill("[aria-label='Find in captions and names']", "")
    screen(page, "workbench-data")


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_nothing_of_ours_is_out_of_reach_for_a_screen_reader(trained, palette):
    if not AXE.is_file():
        pytest.skip("no axe-core: npm ci")
    page = trained
    set_(page, "Comfy.ColorPalette", palette)
    open_tab(page)
    found = violations(page, ".loom-bench", ".loom-panel", ".loom-report", ".loom-drop")
    page.click(".loom-bench > .loom-tabs >> text=Runs")
    found += violations(page, ".loom-bench")
    page.click(".loom-open >> text=first")
    for tab in TABS:
        page.click(f".loom-detail .loom-tabs >> text={tab}")
        still(page)
        found += violations(page, ".loom-bench")
    page.click(".loom-detail >> text=Runs")
    set_(page, "Comfy.ColorPalette", "dark")
    assert found == []


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
@pytest.mark.parametrize("is_vue", [False, True])
def test_nodes_and_panel_fit_in_both_renderers(trained, size, is_vue):
    page = trained
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_viewport_size({"width": size[0], "height": size[1]})
    if page.locator(".loom-bench").is_visible():  # beside it the panel may lie outside of a small window
        page.click(".lora-loom-tab-button, [data-testid=lora-loom-tab-button]")
    set_(page, "Comfy.VueNodes.Enabled", is_vue)
    load(page, template("train_sd"))
    still(page)
    panel = page.locator(".loom-panel").first.bounding_box()
    scale = page.evaluate("window.app.canvas.ds.scale")
    assert panel["width"] / scale > 350
    size_of = "window.app.graph._nodes.find((node) => node.type === 'LoomDataset').size[1]"
    assert page.evaluate(size_of) < 600, "there is room for inputs that are folded"
    page.locator(".loom-drop").first.wait_for()
    screen(page, f"page-{size[0]}-{'nodes2' if is_vue else 'canvas'}")
    set_(page, "Comfy.VueNodes.Enabled", False)
    page.wait_for_function(
        "window.app.graph._nodes.find((node) => node.type === 'LoomDataset').widgets.some((one) => one.type === 'button' && !one.hidden && one.label.startsWith('Show '))"
    )
    page.set_viewport_size({"width": 1920, "height": 1080})
    assert errors == []


class Hand:
    """Counts what a person does."""

    def __init__(self, page):
        self.page, self.clicks, self.inputs = page, 0, 0

    def click(self, selector):
        self.page.click(selector)
        self.clicks += 1

    def type(self, node, name, value):
        """Into a widget of the canvas: it is clicked, and its value is typed."""
        self.page.evaluate(
            "([type, name, value]) => { const w = window.app.graph._nodes.find((n) => n.type === type).widgets.find((w) => w.name === name); w.value = value; w.callback?.(value); }",
            [node, name, value],
        )
        self.clicks += 1
        self.inputs += 1


def test_from_the_template_card_to_a_running_training_it_is_a_few_clicks(trained, server):
    page = trained
    hand = Hand(page)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.click("[role=dialog] >> text=lora_loom >> nth=-1")  # a report below it may name a folder of that name
    hand.click("text=Train a LoRA on my photos - SD 1.5 and SDXL")
    page.wait_for_function("window.app.graph._nodes.some((node) => node.type === 'LoomDataset')")
    # Instead of a checkpoint of some gigabytes: the demo's model, which is one node as well.
    page.evaluate(
        """() => {
          const { graph } = window.app;
          const old = graph._nodes.find((node) => node.type === "CheckpointLoaderSimple");
          const made = window.LiteGraph.createNode("LoomDemoModel");
          graph.add(made);
          for (const [slot, output] of old.outputs.entries()) {
            for (const id of [...(output.links ?? [])]) {
              const link = graph.links.get ? graph.links.get(id) : graph.links[id];
              made.connect(slot, graph.getNodeById(link.target_id), link.target_slot);
            }
          }
          graph.remove(old);
        }"""
    )
    page.set_input_files(
        ".loom-drop input[type=file]",
        [{"name": f"{n}.png", "mimeType": "image/png", "buffer": picture(c)} for n, c in enumerate(("red", "green"))],
    )
    hand.clicks += 1  # the button that opens the file dialog
    hand.inputs += 1
    page.wait_for_selector(".loom-drop >> text=2 images", timeout=30_000)
    hand.type("LoomDataset", "trigger", "sks")
    hand.type("LoomCache", "resolution", 64)
    hand.type("LoomTrain", "name", "clicked")
    hand.click("[data-testid=queue-button] >> nth=0")
    server.wait_step("clicked", 1, timeout=240)
    server.act("clicked", "stop")
    server.wait_state("clicked", "stopped", timeout=120)
    assert (hand.inputs, hand.clicks) == (4, 6)
