"""web/docs/NODE.md: the help page of every node in ComfyUI's page, made of the node's own texts.

python -m scripts.write_node_docs
"""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "web" / "docs"


def help_page(cls: Any) -> str:
    """Title, what the node does, its inputs and outputs."""
    groups = cls.INPUT_TYPES()
    inputs = {**groups.get("required", {}), **groups.get("optional", {})}
    main = {name: entry for name, entry in inputs.items() if not entry[1].get("advanced")}
    advanced = {name: entry for name, entry in inputs.items() if name not in main}
    parts = [f"# {cls.TITLE}\n\n{cls.DESCRIPTION}"]
    for title, some in (("Inputs", main), ("Advanced inputs", advanced)):
        if some:
            rows = (_row(options.get("display_name", name), options.get("tooltip", "")) for name, (_, options) in some.items())  # fmt: skip
            parts.append(f"## {title}\n\n| input | |\n|---|---|\n" + "\n".join(rows))
    names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
    if names:
        rows = (_row(name, tip) for name, tip in zip(names, cls.OUTPUT_TOOLTIPS, strict=True))
        parts.append("## Outputs\n\n| output | |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _row(name: str, text: str) -> str:
    """A row of a table. A tooltip is plain text: what Markdown or HTML would read as its own is escaped."""
    plain = "".join(f"\\{sign}" if sign in "\\`*_|[]" else sign for sign in text)
    return f"| `{name}` | {plain.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')} |"


def pages() -> dict[str, str]:
    """{name of the file: its text}. The values of drop-down lists that ComfyUI fills are not in it."""
    from lora_loom.nodes import NODES

    return {f"{cls.__name__}.md": help_page(cls) for cls in NODES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pages().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
