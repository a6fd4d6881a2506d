"""The template that needs no model, queued from the page: it trains, sweeps, scores and ends with a strip.

With LOOM_SCREENS=1 it runs whole, and the test draws docs/images/demo-graph.png and panel.png.
"""

import io
import os

import pytest
from PIL import Image

from scripts.draw_thumbnails import BARE, BOX

from .browsing import load, ready, still, template
from .server import ROOT

pytestmark = pytest.mark.browser
WHOLE = bool(os.environ.get("LOOM_SCREENS"))
IMAGES = ROOT / "docs" / "images"
SMALL = {
    "LoomTrain": {"steps": 4, "save_every": 2, "batch_size": 2},
    "LoomSweep": {"seeds": "1", "steps": 2},
    "LoomValidation": {"steps": 2},
}
"""{node: {input: value}} of a short run."""
RAN = "(type) => Boolean(window.app.graph._nodes.find((node) => node.type === type)?.imgs?.length)"


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def shrink(page):
    """Few steps: what is drawn does not matter, that it comes does."""
    page.evaluate(
        """changes => window.app.graph._nodes.forEach((node) => Object.entries(changes[node.type] ?? {}).forEach(([name, value]) => {
             const widget = node.widgets.find((one) => one.name === name);
             if (!widget) throw new Error(`${node.type} has no input ${name}`);
             widget.value = value; }))""",
        SMALL,
    )


def test_the_demo_runs_from_the_page_to_its_strip(server, browser):
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    page.goto(str(server.http.base_url))
    ready(page)
    load(page, template("demo"))
    if not WHOLE:
        shrink(page)
    page.evaluate("window.app.queuePrompt(0)")
    for kind in ("LoomCache", "LoomScore", "LoomStrip"):
        page.wait_for_function(RAN, arg=kind, timeout=900_000 if WHOLE else 240_000)
    page.wait_for_selector(".loom-panel[data-state=finished] >> text=Open compare page")  # without a reload
    if WHOLE:
        draw(page)
    page.close()


def draw(page):
    """The graph after one Run, and the panel as it finds its run again after a reload."""
    still(page)
    page.evaluate(BARE)
    box = {key: max(value, 0) for key, value in page.evaluate(BOX).items()}
    Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB").save(IMAGES / "demo-graph.png", optimize=True)
    page.reload()
    ready(page)
    load(page, template("demo"))
    page.wait_for_selector(".loom-panel >> text=Open compare page", timeout=60_000)
    page.evaluate("window.app.canvas.ds.changeScale(2, [600, 500])")  # the panel is drawn as large as the graph
    still(page)
    page.locator(".loom-panel").screenshot(path=IMAGES / "panel.png")
