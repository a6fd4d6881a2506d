"""The page in ComfyUI's language: our own tab, panel and wizard speak it, and English where there is no table."""

import json
import os
from pathlib import Path

import pytest

from .browsing import load, open_tab, ready, template
from .server import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(page_server):
    return page_server


def opened(server, browser, language):
    server.http.post("/settings/Comfy.Locale", json=language)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(str(server.http.base_url))
    ready(page)
    load(page, template("demo"))
    page.wait_for_selector(".loom-panel", state="attached")
    open_tab(page)
    return page


def wizard_of(page, button):
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_selector(".loom-wizard select option[value=demo]", state="attached")
    if folder := os.environ.get("LOOM_LOOK"):
        page.screenshot(path=Path(folder) / f"wizard-{button}.png")
    return page.locator(".loom-wizard").inner_text()


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "ru"])
def test_the_page_speaks_the_language_of_comfyui(server, browser, language):
    table = json.loads((ROOT / "web" / "texts" / f"{language}.json").read_text(encoding="utf-8"))
    page = opened(server, browser, language)
    tab = page.locator(".loom-bench").inner_text()
    for text in ("Runs", "Data", "New run"):
        assert table[text] in tab
    assert table["No run yet"] in page.locator(".loom-panel").inner_text()
    asked = wizard_of(page, table["New run"])
    for text in ("Base model", "Your images", "Trigger", "Start training"):
        assert table[text] in asked
    page.close()


def test_a_language_without_a_table_gets_english(server, browser):
    page = opened(server, browser, "fr")
    assert "New run" in page.locator(".loom-bench").inner_text()
    assert "Start training" in wizard_of(page, "New run")
    page.close()
    server.http.post("/settings/Comfy.Locale", json="en")
