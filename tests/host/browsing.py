"""ComfyUI's page in Chromium, for tests: fixtures, and how to get a graph into it."""

import io
import json
import os
import shutil

import pytest
from PIL import Image

from scripts.write_workflows import page_path

from .server import ROOT, Server, need_comfyui

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
READABLE = 0.7
"""Below about 0.6 ComfyUI draws no text."""
FRONTEND = os.environ.get("LOOM_FRONTEND")
"""The static folder of another comfyui-frontend-package; without it that of the server's own."""


@pytest.fixture(scope="module")
def page_server(tmp_path_factory):
    need_comfyui()
    arguments = ["--front-end-root", FRONTEND] if FRONTEND else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LOOM_PLAN", "1")  # the page shows the prediction, which other tests leave out
        running = Server(tmp_path_factory.mktemp("comfyui"), *arguments)
        settings = running.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))  # else ComfyUI shows its templates first
        yield running.start()
        running.stop()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium: set CHROMIUM to its path")
    with api.sync_playwright() as play:
        running = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def page(page_server, browser):
    opened = browser.new_page(viewport={"width": 1920, "height": 1080}, reduced_motion="reduce")
    opened.goto(str(page_server.http.base_url))
    ready(opened)
    return opened


BEGUN = (
    "() => { const { workflow } = window.app.extensionManager; return !workflow || Boolean(workflow.activeWorkflow); }"
)
"""The page opens the graph of before, or its own, when everything else has started: what is loaded earlier is replaced by it."""
STILL = """async () => {
  const seen = () => {
    const { graph, canvas } = window.app;
    return JSON.stringify([canvas.ds.scale, ...canvas.ds.offset, document.body.className, graph._nodes.map(({ id, pos, size }) => [id, ...pos, ...size])]);
  };
  for (let before = "", same = 0; same < 30; ) {
    await new Promise(requestAnimationFrame);
    const now = seen();
    same = now === before ? same + 1 : 0;
    before = now;
  }
  const moving = document.getAnimations().filter((one) => one.playState === "running" && Number.isFinite(one.effect?.getComputedTiming().endTime));
  await Promise.all(moving.map((one) => one.finished.catch(() => {})));
}"""


def still(page):
    """Wait until the graph lies still for 30 frames, and nothing fades or slides any more."""
    page.evaluate(STILL)


def ready(page):
    page.wait_for_function("window.app?.graph && window.app.canvas && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("Boolean(window.LiteGraph.registered_node_types.LoomTrain)", timeout=60_000)
    page.wait_for_function(BEGUN, timeout=120_000)
    still(page)


def open_tab(page):
    if not page.locator(".loom-bench").is_visible():
        page.click(".lora-loom-tab-button, [data-testid=lora-loom-tab-button]")
    page.wait_for_selector(".loom-bench")


def load(page, graph):
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)


def template(name):
    return json.loads(page_path(name).read_text(encoding="utf-8"))


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "png")
    return buffer.getvalue()
