"""Thumbnails of the example workflows, taken from a running ComfyUI in a headless Chromium (`pip install playwright`).

    python -m scripts.draw_thumbnails http://127.0.0.1:8188 [/usr/bin/chromium [train_flux …]]

The server should have files (empty ones will do) under the names that the workflows use, or their loaders are framed red.
"""

import io
import json
import sys
from typing import Any

from PIL import Image

from .workflow_layouts import LAYOUTS
from .write_workflows import page_path

SIZE = (720, 405)
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
BARE = """() => {
  for (const element of document.querySelectorAll("body *")) {
    const holds = element.querySelector("canvas, .dom-widget") || element.matches("canvas, .dom-widget") || element.closest(".dom-widget");
    if (!holds || element.closest(".minimap-main-container")) element.style.visibility = "hidden";
  }
}"""
BOX = """() => {
  const canvas = window.app.canvas, [x, y] = canvas.ds.offset, scale = canvas.ds.scale;
  const boxes = [...window.app.graph._nodes.map(n => [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]), ...window.app.graph._groups.map(g => [...g.pos, ...g.size])];
  const edge = (side, most) => Math[most](...boxes.map(b => b[side] + (most === "max" ? b[side + 2] : 0)));
  const left = edge(0, "min"), top = edge(1, "min");
  return { x: (left + x) * scale, y: (top + y) * scale, width: (edge(0, "max") - left) * scale, height: (edge(1, "max") - top) * scale };
}"""


def shot(page: Any, name: str) -> Image.Image:
    """The graph alone, as ComfyUI's canvas draws it."""
    page.evaluate("graph => window.app.loadGraphData(graph)", json.loads(page_path(name).read_text(encoding="utf-8")))
    page.wait_for_timeout(4000)
    page.evaluate(BARE)
    box = page.evaluate(BOX)
    png = page.screenshot(clip={key: max(value, 0) for key, value in box.items()})
    page.reload()
    wait(page)
    return Image.open(io.BytesIO(png)).convert("RGB")


def wait(page: Any) -> None:
    page.wait_for_function("window.app && window.app.graph && window.app.canvas", timeout=120_000)
    page.wait_for_timeout(4000)
    page.keyboard.press("Escape")


def thumbnail(image: Image.Image) -> Image.Image:
    """The picture on a dark card of `SIZE`."""
    card = Image.new("RGB", SIZE, "#14171d")
    image.thumbnail((SIZE[0] - 24, SIZE[1] - 24), Image.Resampling.LANCZOS)
    card.paste(image, ((SIZE[0] - image.width) // 2, (SIZE[1] - image.height) // 2))
    return card


def main(address: str, chromium: str | None = None, *names: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.goto(address)
        wait(page)
        for name in names or LAYOUTS:
            thumbnail(shot(page, name)).save(page_path(name).with_suffix(".jpg"), quality=88)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
