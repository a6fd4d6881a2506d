"""The section of CHANGELOG.md that a tag publishes: `python scripts/release_notes.py v0.2.0`.

Uses nothing but the standard library, since the workflow that publishes installs nothing else.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, pyproject: str, changelog: str) -> str:
    """What the changelog says of a tag's version. Raises ValueError if the tag is not this version, or has no section."""
    version = tag.removeprefix("v")
    [stated] = re.findall(r'^version = "([^"]+)"', pyproject, re.MULTILINE)
    if version != stated:
        raise ValueError(f"tag {tag} is not the version of pyproject.toml, {stated}: change one of them")
    section = re.search(
        rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## \[|^\[[^\]]+\]: |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None or not section[1].strip():
        raise ValueError(f"CHANGELOG.md says nothing of {version}: give [Unreleased] its number and date")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/release_notes.py TAG")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CHANGELOG.md")]
    try:
        print(notes(sys.argv[1], *texts), end="")
    except ValueError as error:
        sys.exit(str(error))
