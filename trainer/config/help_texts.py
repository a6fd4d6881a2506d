"""The text under each option, for tooltips and docs: it is read from the source, so that it is written once."""

import ast
from functools import cache
from pathlib import Path

FILES = ("run", "model", "network", "optimizer", "objective", "dataset", "sweep")
SOURCES = [Path(__file__).with_name(f"{name}.py") for name in FILES]


@cache
def _all_texts() -> dict[str, dict[str, str]]:
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in SOURCES]
    return {node.name: _texts_of(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts_of(definition: ast.ClassDef) -> dict[str, str]:
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
            found[node.target.id] = str(following.value.value)  # type: ignore[attr-defined]
    return found


def texts(cls: type) -> dict[str, str]:
    """Returns {field: what it does} of one section."""
    return _all_texts()[cls.__name__]
