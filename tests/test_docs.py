"""Links and paths in the documentation lead somewhere."""

import re

import pytest

from tests.import_graph import ROOT

PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("trainer/**/README.md"),
        *ROOT.glob("[nbsaw]*/**/README.md"),
    ]
    if "node_modules" not in path.parts
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:trainer|nodes|tests|scripts|bench|web|workflows|assets|docs)/[\w./-]*)`")


def anchor(heading):
    """The id that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip("# \n").lower()).replace(" ", "-")


def broken(page, text):
    """Links of a page without a target, and paths in code marks that do not exist. CHANGELOG names paths of earlier versions."""
    found = []
    for link in LINK.findall(text):
        file, _, part = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (
            part and part not in map(anchor, re.findall(r"^#+ .*", target.read_text(encoding="utf-8"), re.MULTILINE))
        ):
            found.append(link)
    if page.name != "CHANGELOG.md":
        found += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page):
    assert not broken(page, page.read_text(encoding="utf-8"))


def test_a_broken_link_a_wrong_anchor_and_a_path_that_is_gone_are_noticed():
    page = ROOT / "README.md"
    assert not broken(
        page, "[a](docs/scores.md#which-checkpoint-to-take) `trainer/types.py` [b](https://example.org/x)"
    )
    assert broken(page, "[a](docs/none.md)") == ["docs/none.md"]
    assert broken(page, "[a](docs/scores.md#none)") == ["docs/scores.md#none"]
    assert broken(page, "`trainer/none.py`") == ["trainer/none.py"]
