"""Writes `locales/LANGUAGE/*.json`, by which ComfyUI's page shows names in its own language, and `web/texts/LANGUAGE.json`, by which
our own part of the page does: `python -m scripts.write_locales`."""

import json
from pathlib import Path
from typing import Any

from lora_loom.nodes import NODE_CLASS_MAPPINGS

from .locale_inputs import DESCRIPTIONS, INPUTS
from .locale_page import PAGE
from .locale_texts import COMMANDS, LANGUAGES, NODES, SETTINGS

FOLDER = Path(__file__).resolve().parents[1] / "locales"
TEXTS = FOLDER.parent / "web" / "texts"


def files() -> dict[str, str]:
    """{path below the folder: content}. Raises KeyError for a node without a name in a language."""
    found: dict[str, Any] = {
        "en/nodeDefs.json": {name: {"display_name": cls.TITLE} for name, cls in NODE_CLASS_MAPPINGS.items()}
    }
    for place, language in enumerate(LANGUAGES):
        found[f"{language}/nodeDefs.json"] = {name: _node(name, place) for name in NODE_CLASS_MAPPINGS}
        for file, key, texts in (("commands", "label", COMMANDS), ("settings", "name", SETTINGS)):
            found[f"{language}/{file}.json"] = {
                name.replace(".", "_"): {key: forms[place]} for name, forms in texts.items()
            }
    return {path: _json(content) for path, content in found.items()}


def page_files() -> dict[str, str]:
    """{file below web/texts: content}."""
    return {
        f"{language}.json": _json({text: forms[place] for text, forms in PAGE.items()})
        for place, language in enumerate(LANGUAGES)
    }


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _node(name: str, place: int) -> dict[str, Any]:
    """A node's texts in one language: its name, and of the nodes that are translated in full also what it does and its inputs."""
    made: dict[str, Any] = {"display_name": NODES[name][place]}
    if name in DESCRIPTIONS:
        made["description"] = DESCRIPTIONS[name][place]
    if name in INPUTS:
        pairs = {key: forms[place].split("|", 1) for key, forms in INPUTS[name].items()}
        made["inputs"] = {key: {"name": label, "tooltip": tooltip} for key, (label, tooltip) in pairs.items()}
    return made


if __name__ == "__main__":
    for folder, written in ((FOLDER, files()), (TEXTS, page_files())):
        for path, content in written.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
