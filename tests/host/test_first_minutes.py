"""From a template's card to a training that runs, with photos that lie on a disk: the page counts the clicks, the graph what was filled in.

Everything is done by the mouse and the keys of a person who sees ComfyUI for the first time; nothing is set by a script.
"""

import json

import pytest
from PIL import Image

from lora_loom.trainer.demo.scenes import random_scene

from .browsing import ready, still

pytestmark = pytest.mark.browser
CARD = "Train a LoRA on my photos - SD 1.5 and SDXL"
MOST_INPUTS, MOST_CLICKS = 4, 6
COUNT = """() => {
  window.clicks = 0;
  window.addEventListener("pointerdown", (event) => { window.clicks += event.isTrusted ? 1 : 0; }, true);
}"""
WIDGET = """([type, name]) => {
  const { graph, canvas } = window.app, node = graph._nodes.find((one) => one.type === type);
  const widget = node.widgets.find((one) => one.name === name);
  const [left, top] = canvas.ds.offset, box = canvas.canvas.getBoundingClientRect();
  if (widget.last_y === undefined) return null;
  return [node.pos[0] + node.size[0] / 2 + left, node.pos[1] + widget.last_y + 10 + top].map((at, side) => at * canvas.ds.scale + [box.left, box.top][side]);
}"""
"""Where a widget of the canvas lies in the window, once it has been drawn."""
VALUES = "() => Object.fromEntries(window.app.graph._nodes.flatMap((node) => (node.widgets ?? []).filter((one) => one.serialize !== false).map((one) => [`${node.type}.${one.name}`, one.value])))"
"""All values of the graph, which tells afterwards what has been filled in."""


@pytest.fixture(scope="module")
def server(page_server):
    (page_server.base / "models" / "checkpoints" / "toy-sd1.safetensors").write_bytes(
        b"the test's loader reads its name"
    )
    return page_server


@pytest.fixture
def photos(tmp_path):
    """Fifteen photos of a phone with captions, of several sizes."""
    import random

    for number in range(15):
        scene = random_scene(random.Random(number))
        size = [(640, 480), (480, 640), (512, 512)][number % 3]
        scene.draw().resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"IMG_{2041 + number}.jpg")
        (tmp_path / f"IMG_{2041 + number}.txt").write_text(scene.caption)
    return sorted(tmp_path.iterdir())


def click_widget(page, kind, name):
    place = page.wait_for_function(WIDGET, arg=[kind, name]).json_value()
    page.mouse.click(*place)


def type_into(page, kind, name, text):
    """A text of the canvas: one click opens its field, Enter closes it."""
    click_widget(page, kind, name)
    page.wait_for_selector(".graphdialog input")
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".graphdialog", state="detached")


def test_from_the_template_card_to_a_running_training_it_is_a_few_clicks(server, browser, photos):
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    page.goto(str(server.http.base_url))
    ready(page)
    page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.click("[role=dialog] >> text=lora_loom >> nth=-1")  # a report below it may name a folder of that name
    page.locator(f"text={CARD}").first.wait_for()
    page.evaluate(COUNT)
    page.click(f"text={CARD}")  # 1
    page.wait_for_function(
        "window.app.graph._nodes.some((node) => node.type === 'LoomDataset') && !window.app.graph.extra.loom_template"
    )
    still(page)
    before = page.evaluate(VALUES)
    click_widget(page, "CheckpointLoaderSimple", "ckpt_name")  # 2
    page.click(".litecontextmenu .litemenu-entry >> text=toy-sd1.safetensors")  # 3
    with page.expect_file_chooser() as chooser:
        page.click(".loom-drop >> text=Choose images")  # 4
    chooser.value.set_files(photos)
    page.wait_for_selector(".loom-drop >> text=15 images, 15 with a caption file", timeout=60_000)
    type_into(page, "LoomDataset", "trigger", "ohwx")  # 5
    page.click("[data-testid=queue-button] >> nth=0")  # 6
    server.wait_step("my-lora", 1, timeout=240)
    server.act("my-lora", "stop")
    server.wait_state("my-lora", "stopped", timeout=120)
    after = page.evaluate(VALUES)
    filled = sorted(name for name, value in after.items() if before.get(name) != value)
    clicks = page.evaluate("window.clicks")
    page.close()
    assert filled == ["CheckpointLoaderSimple.ckpt_name", "LoomDataset.folder", "LoomDataset.trigger"]
    assert len(filled) <= MOST_INPUTS
    assert clicks <= MOST_CLICKS
    record = json.loads((server.base / "output" / "lora_loom" / "my-lora" / "run.json").read_text())
    assert record["step"] >= 1
