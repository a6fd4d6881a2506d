"""Links and paths in the documentation lead somewhere, and every public name has a docstring."""

import ast
import re

import pytest

from tests.import_graph import ROOT, SOURCES

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
PATH = re.compile(r"`((?:trainer|nodes|tests|scripts|bench|web|example_workflows|assets|docs)/[\w./-]*)`")


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


def without_a_sentence(source):
    """Public classes and functions of a module, and the module itself, whose docstring is missing or not a sentence."""
    module = ast.parse(source)
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [one for one in module.body if isinstance(one, kinds) and not one.name.startswith("_")]
    texts = {one.name: ast.get_docstring(one) or "" for one in public}
    if module.body:
        texts["module"] = ast.get_docstring(module) or ""
    return [name for name, text in texts.items() if text[:1] in set("{(") | {""} or text[-1] not in ".:;)"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_names_have_docstrings(path):
    assert not without_a_sentence(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["", '"""{name: value}."""', '"""No full stop"""'])
@pytest.mark.parametrize("head", ["def f():", "class F:", "async def f():"])
def test_a_public_name_without_a_sentence_is_noticed(head, text):
    assert not without_a_sentence(f'"""A module."""\n{head}\n    """Does something."""\n    pass')
    assert not without_a_sentence(f'"""A module."""\ndef _private():\n    {text}\n    pass')
    assert without_a_sentence(f'"""A module."""\n{head}\n    {text}\n    pass')
