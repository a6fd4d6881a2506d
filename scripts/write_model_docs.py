"""Write the tables of docs/models.md: rows of known models, and which layers of every class of ComfyUI train.

    python -m scripts.write_model_docs

The layers are those that `record_host_models.py` has recorded from a real ComfyUI; the text around the tables is written by hand.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lora_loom.trainer.diffusion.timesteps import ResolutionShift
from lora_loom.trainer.known_models.row import ModelRow, Sourced
from lora_loom.trainer.known_models.rows import ROWS

from .image_models import CLASSES, LEFT_OUT

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
RECORD = ROOT / "tests" / "fixtures" / "host" / "models.json"
TRAINED = RECORD.with_name("training.json")
NUMBERS = ("shift", "guidance", "cfg", "rank", "rate", "bucket_step")


def render(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The document with each table between its marks, <!-- NAME --> and <!-- /NAME -->."""
    for name, lines in tables.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = marks.subn(lambda match, lines=lines: match[1] + "\n".join(lines) + "\n" + match[2], text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the marks of {name} stand {count} times in {DOCUMENT}")
    return text


def tables() -> dict[str, list[str]]:
    """{name: lines}: known models, their sources, layers of every class, classes that are left out."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    trained = json.loads(TRAINED.read_text(encoding="utf-8"))
    return {
        "rows": _rows(), "sources": _sources(), "layers": _layers(record["classes"]), "left-out": _left_out(),
        "trained": [_trained(trained["classes"], trained["comfyui"])],
    }  # fmt: skip


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _named() -> list[ModelRow]:
    """One row for each name: those for other spellings of a file say the same."""
    return list({row.name: row for row in reversed(ROWS)}.values())[::-1]


def _rows() -> list[str]:
    titles = ("model", "distilled", *NUMBERS, "instead, and traps")
    rows = []
    for row in _named():
        said = " ".join(
            filter(
                None,
                [
                    row.instead and f"Instead or besides: {row.instead}.",
                    row.trap,
                    row.unsaid and f"{row.unsaid[0].upper()}{row.unsaid[1:]}.",
                ],
            )
        )
        numbers = [_value(getattr(row, name)) for name in NUMBERS]
        rows.append([row.name, "" if row.distilled == "no" else row.distilled, *numbers, said])
    return _table(titles, rows)


def _value(found: Sourced[Any] | None) -> str:
    if found is None:
        return ""
    if isinstance(found.value, ResolutionShift):
        law = found.value
        return f"by size: mu {law.base_shift:g} at {law.base_tokens} tokens, {law.max_shift:g} at {law.max_tokens}"
    return f"{found.value:g}" if isinstance(found.value, float | int) else f"`{found.value}`"


def _sources() -> list[str]:
    rows = []
    for row in _named():
        sourced = {field.name: getattr(row, field.name) for field in fields(row)}
        said = [f"{name}: {one.source}" for name, one in sourced.items() if isinstance(one, Sourced)]
        rows.append([row.name, "; ".join(said)])
    return _table(("model", "where each number was read"), rows)


def _layers(classes: Mapping[str, Any]) -> list[str]:
    titles = (
        "class",
        "size",
        "attention",
        "mlp",
        "modulation",
        "outside",
        "trained by default",
        "of the weights",
        "parameters at rank 16",
    )
    rows = []
    for name, found in sorted(classes.items()):
        counts = [str(found["roles"].get(role, 0)) for role in ("attention", "mlp", "modulation", "outside")]
        default = found["presets"]["default"]
        mark = "" if not found["problem"] else " (by name)"
        rows.append([
            f"{name}{mark}", CLASSES[name].source, *counts, str(default["modules"]), f"{default['share']:.0%}",
            f"{default['parameters'] / 1e6:.1f} M",
        ])  # fmt: skip
    return _table(titles, rows)


def _trained(classes: Mapping[str, Any], version: str) -> str:
    """How many classes train, and why the others do not."""
    problems = [f"{name} ({found['problem']})" for name, found in classes.items() if "problem" in found]
    rest = f" Not: {', '.join(problems)}." if problems else ""
    return (
        f"A small network of each class was trained in ComfyUI {version} for three steps with default settings: {len(classes) - len(problems)} of "
        f"{len(classes)} train.{rest} Every target module gets a gradient, the base keeps every bit, ComfyUI's loader matches every key of the "
        "file, and the file moves ComfyUI's own prediction by what was trained."
    )


def _left_out() -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, reason in LEFT_OUT.items():
        reasons.setdefault(reason, []).append(name)
    return _table(("classes", "why"), [[", ".join(names), reason] for reason, names in reasons.items()])


def main() -> None:
    DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
