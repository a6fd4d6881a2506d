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
        running = Server(tmp_path_factory.mktemp("comfyui"), *arguments).start()
        yield running
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
    opened = browser.new_page(viewport={"width": 1920, "height": 1080})
    opened.goto(str(page_server.http.base_url))
    ready(opened)
    return opened


def calm(page):
    """Close what ComfyUI opens at its first start."""
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)


def uncovered(page):
    """Close a dialog of ComfyUI's that came later than `calm`, as its templates do at a first start on a busy machine."""
    if page.locator("[data-testid=dialog-overlay]").count():
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)


def ready(page):
    page.wait_for_function("window.app?.graph && window.app.canvas && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("Boolean(window.LiteGraph.registered_node_types.LoomTrain)", timeout=60_000)


def open_tab(page):
    uncovered(page)
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
