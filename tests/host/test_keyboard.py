"""The sidebar without a mouse: from its key to a loader with a LoRA, and no press loses the focus. Buttons answer before the server does."""

import pytest

from .browsing import load, open_tab
from .test_workbench import long_demo, small_demo

pytestmark = pytest.mark.browser
HELD = "document.activeElement"


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


@pytest.fixture(scope="module")
def trained(page, server):
    """A run that has ended, and one that trains."""
    for graph, name, state in ((small_demo, "first", "finished"), (long_demo, "second", "running")):
        server.run(graph(name), timeout=240)
        server.wait_state(name, state, timeout=240)
    yield page
    server.act("second", "stop")


def tab_to(page, name, key="Tab", most=60):
    """Press Tab until an element of this name has the focus."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate(f"[{HELD}.getAttribute('aria-label'), {HELD}.textContent, {HELD}.title].includes({name!r})"):
            return
    raise AssertionError(f"{name} is not reached by {key}")


def holds(page, text):
    page.wait_for_function(f"[{HELD}.textContent, {HELD}.title, {HELD}.ariaLabel].includes({text!r})", timeout=60_000)


def test_the_sidebar_is_used_by_keys_alone(trained):
    page = trained
    page.keyboard.press("Alt+Shift+L")
    holds(page, "Find a run by its name, or by its note")
    tab_to(page, "Open second")
    page.keyboard.press("Enter")
    holds(page, "Back to the list of runs")
    tab_to(page, "Pause")
    page.keyboard.press("Space")
    page.wait_for_selector(".loom-detail[data-state=paused]", timeout=60_000)
    holds(page, "Resume")
    page.keyboard.press("Enter")
    page.wait_for_selector(".loom-detail[data-state=running]", timeout=60_000)
    holds(page, "Pause")
    tab_to(page, "Back to the list of runs", "Shift+Tab")
    page.keyboard.press("Enter")
    holds(page, "Open second")
    for name in ("second", "first"):
        tab_to(page, f"Choose {name} to compare", "Shift+Tab" if name == "second" else "Tab")
        page.keyboard.press("Space")
    tab_to(page, "Compare", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".loom-compare .loom-settings >> text=steps")
    holds(page, "Back to the list of runs")
    page.keyboard.press("Enter")
    holds(page, "Find a run by its name, or by its note")
    tab_to(page, "Open first")
    page.keyboard.press("Enter")
    holds(page, "Back to the list of runs")
    tab_to(page, "Progress")
    for tab in ("Samples", "Compare"):
        page.keyboard.press("ArrowRight")
        holds(page, tab)
    tab_to(page, "Use this one")
    page.keyboard.press("Enter")
    page.wait_for_function("window.app.graph._nodes.some((node) => node.type === 'LoraLoaderModelOnly')")


@pytest.mark.parametrize("place", [".loom-detail", ".loom-panel"])
def test_a_button_says_that_it_was_pressed_before_the_server_answers(trained, server, place):
    page = trained
    if place == ".loom-panel":
        load(page, {"nodes": [], "links": []})
        page.evaluate("([graph, name]) => window.app.loadApiJson(graph, name)", [long_demo("second"), "second"])
    else:
        open_tab(page)
        if page.locator(".loom-detail").is_visible():
            page.click(".loom-detail >> text=Runs")
        page.click(".loom-open >> text=second")
    page.wait_for_selector(f"{place}[data-state=running]")
    held = []

    def hold(route):
        held.append(route)

    page.route("**/lora_loom/runs/second/pause", hold)
    page.click(f"{place} >> text=Pause")
    page.wait_for_selector(f"{place} >> text=Pausing after this step")
    assert page.locator(f"{place} button:has-text('Pause')").is_disabled()
    page.wait_for_function("true")  # the route's handler runs between two calls
    assert held, "the request was made, and nobody has answered it yet"
    held[0].continue_()
    page.unroute("**/lora_loom/runs/second/pause")
    page.wait_for_selector(f"{place}[data-state=paused]", timeout=60_000)
    assert page.locator(f"{place} >> text=Pausing after this step").count() == 0
    page.click(f"{place} >> text=Resume")
    page.wait_for_selector(f"{place}[data-state=running]", timeout=60_000)
