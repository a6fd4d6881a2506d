"""The wizard "New run" in a real browser: from the sidebar to a training that runs, counted in inputs and clicks."""

import os

import pytest

from .browsing import AXE, READABLE, open_tab, picture, still
from .server import ROOT
from .test_workbench import violations

pytestmark = pytest.mark.browser
MOST_INPUTS, MOST_CLICKS = 4, 6


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def files(*colours):
    return [{"name": f"{n}.png", "mimeType": "image/png", "buffer": picture(c)} for n, c in enumerate(colours)]


def test_from_the_wizard_to_a_running_training(page, server):
    open_tab(page)
    clicks, inputs = 1, 0
    page.click(".loom-list-head >> text=New run")
    clicks += 1
    dialog = page.locator(".loom-wizard")
    dialog.locator("select").first.wait_for()
    page.wait_for_function("document.querySelector('.loom-wizard select').value === 'demo'")  # the only model here
    page.wait_for_selector(".loom-wizard >> text=Demo model")
    assert page.locator(".loom-wizard >> text=Start training").is_enabled(), "the demo has images of its own"
    if AXE.is_file():
        assert violations(page, ".loom-wizard") == []
    dialog.locator("input[type=file]").first.set_input_files(files("red", "green", "blue"))
    clicks, inputs = clicks + 1, inputs + 1  # the button that opens the file dialog
    page.wait_for_selector(".loom-wizard >> text=3 images", timeout=30_000)
    page.fill(".loom-wizard [placeholder*=ohwx]", "sks")
    clicks, inputs = clicks + 1, inputs + 1
    assert page.input_value(".loom-wizard label:has-text('Name of the run') input") == "sks"
    if os.environ.get("LOOM_SCREENS"):
        dialog.screenshot(path=ROOT / "docs" / "images" / "new-run.png")
    page.click(".loom-wizard >> text=Start training")
    clicks += 1
    server.wait_step("sks", 1, timeout=240)
    server.act("sks", "stop")
    server.wait_state("sks", "stopped", timeout=120)
    assert inputs <= MOST_INPUTS
    assert clicks <= MOST_CLICKS
    assert (inputs, clicks) == (2, 5)


def test_its_graph_lies_in_columns_that_fit_the_screen(page):
    still(page)
    titles = page.evaluate("window.app.graph._groups.map((group) => group.title)")
    assert titles == ["1  Model", "2  Your images", "3  Cache and samples", "4  Train"]
    boxes = page.evaluate(
        "window.app.graph._nodes.map((node) => [...node.pos, ...node.size].map(Math.round).concat(node.type))"
    )
    assert {box[4] for box in boxes} == {"LoomDemoModel", "LoomDataset", "LoomCache", "LoomValidation", "LoomTrain"}
    for i, (x, y, w, h, kind) in enumerate(boxes):
        for x2, y2, w2, h2, other in boxes[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y, (kind, other)
    assert page.locator(".loom-drop >> text=3 images").count() == 1, "the node knows what was uploaded"
    assert page.evaluate("window.app.canvas.ds.scale") >= READABLE


def test_a_model_of_three_files_asks_for_what_is_missing_and_an_edit_for_both_folders(page, server, checkpoints):
    models = server.base / "models"
    for kind in ("diffusion_models", "text_encoders", "vae"):
        (models / kind).mkdir(exist_ok=True)
    (models / "diffusion_models" / "flux.safetensors").write_bytes((checkpoints / "flux.safetensors").read_bytes())
    (models / "vae" / "ae.safetensors").write_bytes(b"not read")
    (models / "text_encoders" / "clip_l.safetensors").write_bytes(b"not read")
    (server.base / "input" / "pairs").mkdir(parents=True)
    (server.base / "input" / "pairs" / "0.png").write_bytes(picture("red"))
    page.click(".loom-list-head >> text=New run")
    page.select_option(".loom-wizard select >> nth=0", "diffusion_models/flux.safetensors")
    page.wait_for_selector(".loom-parts select >> nth=2")
    assert [page.locator(".loom-parts select").nth(n).input_value() for n in range(3)] == [
        "clip_l.safetensors",
        "",
        "ae.safetensors",
    ]
    page.select_option(".loom-wizard .loom-images-field select >> nth=0", "pairs")
    start = page.locator(".loom-wizard >> text=Start training")
    assert start.is_disabled(), "the second text encoder is not chosen"
    page.select_option(".loom-parts select >> nth=1", "clip_l.safetensors")
    assert start.is_enabled()
    page.select_option(".loom-wizard select:has(option[value=edit])", "edit")
    assert start.is_disabled(), "an edit needs images before it"
    page.select_option(".loom-wizard .loom-images-field select >> nth=1", "pairs")
    page.click(".loom-wizard >> text=Only build the graph")
    page.wait_for_function("window.app.graph._nodes.some((node) => node.type === 'DualCLIPLoader')")
    page.wait_for_selector(".loom-wizard", state="detached")
    assert page.evaluate("window.app.graph._nodes.filter((node) => node.type === 'LoomValidation').length") == 0
