"""The imports of a source file as dotted module names: what the rules in test_architecture.py are stated over."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def module_name(path: Path) -> str:
    """trainer/data/cache/store.py is "trainer.data.cache.store"; a package is called as its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = sorted(path for folder in ("trainer", "nodes") for path in (ROOT / folder).rglob("*.py"))
MODULES = {module_name(path) for path in SOURCES}


def imported(path: Path, source: str, *, top_level_only: bool = False) -> set[str]:
    """Every module that this source, lying at `path`, imports: ours as "trainer.…" or "nodes.…", others by their first name.

    `import nodes` (ComfyUI's module) is the bare name "nodes"; a relative import of our own folder never is.
    """
    tree = ast.parse(source)
    found: set[str] = set()
    for node in _outside_functions(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level]
            stem = ".".join([*package, *([node.module] if node.module else [])])
            found |= {name if (name := f"{stem}.{alias.name}") in MODULES else stem for alias in node.names}
    return found


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the module is imported; `if TYPE_CHECKING:` never does."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _outside_functions(node)


def cycles(graph: dict[str, Iterable[str]]) -> list[str]:
    """Every import cycle as "a -> b -> a"."""
    done: set[str] = set()
    found: list[str] = []

    def visit(module: str, stack: list[str]) -> None:
        if module in stack:
            found.append(" -> ".join([*stack[stack.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*stack, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found
