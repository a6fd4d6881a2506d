"""Two tabs of a real ComfyUI's page on one run, the queue's order by drag, and a server that is killed under them."""

import json

import pytest

from .browsing import open_tab, ready
from .server import Server
from .test_workbench import long_demo

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


@pytest.fixture(scope="module")
def tabs(page, browser, server):
    """Two tabs with the list of runs, while "first" trains and two others wait."""
    other = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    other.goto(str(server.http.base_url))
    ready(other)
    for name in ("first", "second", "third"):
        server.run(long_demo(name), timeout=240)
    server.wait_step("first", 1, timeout=240)
    for tab in (page, other):
        open_tab(tab)
        tab.wait_for_selector(".loom-row >> text=third")
    yield page, other
    other.close()


def test_what_is_done_in_one_tab_is_seen_in_the_other(tabs):
    page, other = tabs
    page.click(".loom-open >> text=first")
    page.click(".loom-menu >> text=Pause")
    for tab in tabs:
        tab.wait_for_selector("[data-state=paused] >> text=Paused", timeout=60_000)
    other.click(".loom-open >> text=first")
    other.click(".loom-menu >> text=Resume")
    page.wait_for_selector(".loom-detail[data-state=running]", timeout=60_000)
    for tab in tabs:
        tab.click(".loom-detail >> text=Runs")


def waiting(server):
    return server.http.get("/lora_loom/runs").json()["queue"]


def test_a_run_that_waits_is_dragged_to_its_place(tabs, server):
    page, other = tabs
    assert waiting(server) == ["second", "third"]
    rows = [
        page.locator(".loom-row", has=page.locator(".loom-row-name", has_text=name)) for name in ("third", "second")
    ]
    rows[0].drag_to(rows[1])
    page.wait_for_function(
        "[...document.querySelectorAll('.loom-row-name')].map((one) => one.textContent).join() === 'first,third,second'"
    )
    assert waiting(server) == ["third", "second"]
    row = other.locator(".loom-row", has=other.locator(".loom-row-name", has_text="first"))
    assert row.get_attribute("draggable") == "false", "what trains has no place in the queue"


SAID = """async () => {
  const { api } = await import("/scripts/api.js");
  const text = (place) => document.querySelector(place)?.textContent ?? "";
  api.addEventListener("reconnecting", () => {
    window.said ??= [".loom-panel .loom-chip", ".loom-detail .loom-chip", ".loom-ticker"].map(text);
  });
}"""
"""Keeps what stands in a tab when the event has gone through it that tells of a lost connection: nothing later is waited for."""


def test_a_killed_server_is_said_at_once_and_the_run_goes_on_after_its_return(tabs, server):
    page, other = tabs
    page.evaluate("([graph, name]) => window.app.loadApiJson(graph, name)", [long_demo("first"), "first"])
    page.wait_for_selector(".loom-panel[data-state=running]")
    page.click(".loom-open >> text=first")
    page.wait_for_selector(".loom-detail[data-state=running]")
    page.evaluate(SAID)
    server.act("first", "save")
    page.wait_for_selector(".loom-panel .loom-message >> text=saved", timeout=60_000)
    port = server.port
    server.kill()
    page.wait_for_function("window.said", timeout=60_000)
    assert page.evaluate("window.said") == ["No connection", "No connection", "first: no connection"]
    assert page.locator(".loom-detail .loom-menu button").count() == 0, "nothing can be asked of it now"
    other.wait_for_selector("text=No connection to ComfyUI: this may be old.")
    other.wait_for_selector(".loom-row[data-state=offline] >> text=first")
    Server.start(server, port=port)
    other.wait_for_selector(".loom-row[data-state=interrupted] >> text=first", timeout=120_000)
    for place in (".loom-panel", ".loom-detail"):
        page.wait_for_selector(f"{place}[data-state=interrupted] >> text=Interrupted", timeout=120_000)
    assert page.locator("text=No connection >> visible=true").count() == 0
    folder = server.base / "output" / "lora_loom" / "first"
    saved = json.loads((folder / "run.json").read_text())["step"]
    assert saved > 0
    page.click(".loom-panel >> text=Continue")
    server.wait_step("first", saved + 1, timeout=240)
    page.wait_for_selector(".loom-detail[data-state=running]", timeout=60_000)
    server.act("first", "stop")
    server.wait_state("first", "stopped", timeout=120)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, steps[-1] + 1)), "no step is missing, and none was done twice"
