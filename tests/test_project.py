"""What pyproject.toml says of the project is true: its address is stated once, its pictures exist, its version has a section."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scripts.release_notes import notes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
COMFY = PYPROJECT["tool"]["comfy"]


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_every_link_to_this_repository_goes_to_the_address_in_pyproject():
    """Whoever moves the project changes `Repository`, and this test names the rest."""
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    name = owner_and_name.rpartition("/")[2]
    link = re.compile(rf"(?:github\.com|raw\.githubusercontent\.com)/([\w.-]+/{re.escape(name)})\b")
    found = [
        (path.relative_to(ROOT), other)
        for path in tracked("*.toml", "*.md", "*.yml", "*.yaml", "*.json", "*.py")
        for other in link.findall(path.read_text(encoding="utf-8"))
    ]
    assert found
    assert {other for _, other in found} == {owner_and_name}, found


def test_the_registry_finds_the_pictures():
    for key, largest in (("Icon", (400, 400)), ("Banner", (1680, 720))):
        branch, _, file = COMFY[key].removeprefix("https://raw.githubusercontent.com/").partition("/main/")
        assert branch == REPOSITORY.removeprefix("https://github.com/")
        with Image.open(ROOT / file) as image:
            assert image.size == largest


def test_the_version_has_a_section_in_the_changelog():
    """While a version is being made its section is [Unreleased]; a tag needs the section itself (publish.yml checks)."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert len(set(sections)) == len(sections)
    assert set(sections) == set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE)), "each section links to its changes"
    released = [tuple(map(int, name.split("."))) for name in sections if name != "Unreleased"]
    assert released == sorted(released, reverse=True)
    assert tuple(map(int, PYPROJECT["project"]["version"].split("."))) >= released[0]


def test_a_tag_publishes_its_own_section_or_nothing():
    pyproject = 'name = "x"\nversion = "0.2.0"\nrequires = "y"\n'
    changelog = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n- A.\n\n## [0.1.0]\n- B.\n\n[0.2.0]: x\n"
    assert notes("v0.2.0", pyproject, changelog) == "### Added\n- A.\n"
    with pytest.raises(ValueError, match="tag v0.3.0 is not the version of pyproject.toml, 0.2.0"):
        notes("v0.3.0", pyproject, changelog)
    with pytest.raises(ValueError, match=r"says nothing of 0.2.0: give \[Unreleased\] its number"):
        notes("v0.2.0", pyproject, changelog.replace("0.2.0", "0.1.9"))
    assert notes("v0.1.0", pyproject.replace("0.2", "0.1"), changelog) == "- B.\n"


def test_an_installed_copy_has_every_package():
    """setuptools copies the packages that are listed and no others; an editable install would not show that one is missing."""
    folders = {path.parent.relative_to(ROOT) for path in tracked("*/__init__.py")}
    code = {folder for folder in folders if folder.parts and folder.parts[0] in ("trainer", "nodes")}
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert listed == {"lora_loom", *(".".join(("lora_loom", *folder.parts)) for folder in code)}
