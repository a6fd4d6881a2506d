"""The subgraph blueprint "Train a LoRA" in a real browser: found by its name, one node, and a run comes of it."""

import pytest

from .browsing import picture, still

pytestmark = pytest.mark.browser
OFFERED = "[...document.querySelectorAll('li, [role=option]')].some((one) => one.textContent.includes('Train a LoRA'))"


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def test_the_blueprint_is_served(server):
    answer = server.http.get("/api/global_subgraphs")
    if answer.status_code == 404:
        pytest.skip("this ComfyUI serves no blueprints")
    assert "Train a LoRA" in [entry["name"] for entry in answer.json().values()]


def test_one_node_trains(page, server):
    for name in ("red", "green"):
        path = server.base / "input" / "two" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(name))
    page.evaluate("window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_function("document.activeElement?.tagName === 'INPUT'")
    page.keyboard.type("Train a LoRA")
    page.wait_for_function(OFFERED)
    page.keyboard.press("Enter")
    still(page)
    page.mouse.click(960, 400)  # newer frontends let the node hang at the pointer until it is put down
    page.wait_for_function("window.app.graph._nodes.some((node) => node.title === 'Train a LoRA')")
    node = "window.app.graph._nodes.find((node) => node.title === 'Train a LoRA')"
    names = page.evaluate(f"{node}.widgets.map((widget) => widget.name)")
    assert names == ["folder", "trigger", "resolution", "name", "rank", "length"]
    assert page.evaluate(f"{node}.outputs.map((output) => output.name)") == ["run", "lora_name", "model"]
    page.evaluate(
        f"""() => {{
          const one = {node};
          const demo = window.LiteGraph.createNode("LoomDemoModel");
          window.app.graph.add(demo);
          demo.pos = [one.pos[0] - 350, one.pos[1]];
          for (const name of ["model", "clip", "vae"]) demo.connect(demo.findOutputSlot(name), one, one.findInputSlot(name));
          const set = (name, value) => {{ const widget = one.widgets.find((w) => w.name === name); widget.value = value; widget.callback?.(value); }};
          set("folder", "two"); set("trigger", "sks"); set("resolution", 64); set("name", "one-node"); set("rank", 4);
        }}"""
    )
    still(page)
    page.evaluate("window.app.queuePrompt(0)")
    server.wait_step("one-node", 1, timeout=180)
    server.act("one-node", "stop")
    record = server.wait_state("one-node", "stopped", timeout=120)
    assert record["name"] == "one-node"
