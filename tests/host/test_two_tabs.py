"""Two tabs of a real ComfyUI's page on one run, the queue's order by drag, and a server that is killed under them."""

import json

import pytest

from .browsing import calm, open_tab, ready
from .server import Server
from .test_workbench import small_demo

pytestmark = pytest.mark.browser
LONG = 4000


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


@pytest.fixture(scope="module")
def tabs(page, browser, server):
    """Two tabs with the list of runs, while "first" trains and two others wait."""
    calm(page)
    other = browser.new_page(viewport={"width": 1280, "height": 800})
    other.goto(str(server.http.base_url))
    ready(other)
    calm(other)
    for name in ("first", "second", "third"):
        graph = small_demo(name)
        graph["6"]["inputs"]["steps"] = LONG
        server.run(graph, timeout=240)
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


def test_a_killed_server_is_said_and_the_run_goes_on_after_its_return(tabs, server):
    page = tabs[0]
    page.click(".loom-open >> text=first")
    page.click(".loom-detail >> text=Runs")
    server.act("first", "save")
    server.wait_state("first", "running", timeout=60)
    port = server.port
    server.kill()
    for tab in tabs:
        tab.wait_for_selector("text=No connection to ComfyUI", timeout=60_000)
    Server.start(server, port=port)
    for tab in tabs:
        tab.wait_for_selector(".loom-row[data-state=interrupted] >> text=first", timeout=120_000)
    record = json.loads((server.base / "output" / "lora_loom" / "first" / "run.json").read_text())
    saved = record["step"]
    assert saved > 0
    page.click(".loom-open >> text=first")
    page.click(".loom-menu >> text=Continue")
    server.wait_step("first", saved + 1, timeout=240)
    server.act("first", "stop")
    server.wait_state("first", "stopped", timeout=120)
