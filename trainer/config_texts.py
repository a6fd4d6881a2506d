"""The text under each option of config.py, for tooltips and docs: written once."""

import ast
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("config.py")


@cache
def _all_texts() -> dict[str, dict[str, str]]:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    return {node.name: _texts_of(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts_of(definition: ast.ClassDef) -> dict[str, str]:
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
            found[node.target.id] = str(following.value.value)  # type: ignore[attr-defined]
    return found


def texts(cls: type) -> dict[str, str]:
    """{field: what it does} of one section."""
    return _all_texts()[cls.__name__]
