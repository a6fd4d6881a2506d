"""A run whose name another one has: the panel says what differs, and its button trains it under a name of its own."""

import pytest

from .browsing import load, ready, template
from .test_demo_graph import shrink

pytestmark = pytest.mark.browser
TRAIN = "window.app.graph._nodes.find((node) => node.type === 'LoomTrain')"
SET = f"""changes => Object.entries(changes).forEach(([name, value]) => {{ {TRAIN}.widgets.find((one) => one.name === name).value = value; }})"""


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def test_a_taken_name_is_one_click_from_a_new_run(server, browser):
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(str(server.http.base_url))
    ready(page)
    load(page, template("demo"))
    shrink(page)
    page.evaluate(
        "window.app.graph._nodes.filter((node) => ['LoomSweep', 'LoomScore', 'LoomStrip', 'LoomWait'].includes(node.type)).forEach((node) => { node.mode = 2; })"
    )
    page.evaluate("window.app.queuePrompt(0)")
    server.wait_state("demo", "finished", timeout=400)
    page.evaluate(SET, {"rank": 2, "existing_run": "resume"})
    page.evaluate("window.app.queuePrompt(0)")
    button = page.get_by_role("button", name="Train as a new run")
    button.wait_for(timeout=200_000)
    said = page.locator(".loom-clash p").inner_text()
    for part in ("run demo exists with another configuration", "rank in Loom Train LoRA: ", "-> 2"):
        assert part in said
    page.keyboard.press("Escape")
    button.evaluate("button => button.click()")  # ComfyUI's own message may lie above it
    server.wait_state("demo-2", "finished", timeout=400)
    page.wait_for_function("document.querySelector('.loom-title').textContent === 'demo-2'")
    assert not button.is_visible()
    assert server.run_state("demo")["state"] == "finished"
    log = server.http.get("/lora_loom/runs/demo-2/files/log.txt").text
    assert "a run demo exists with other settings (" in log
    page.close()
