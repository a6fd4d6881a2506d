"""Write docs/configuration.md from the fields and texts of trainer/config: python -m scripts.write_config_docs"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from lora_loom.nodes.words import ELSEWHERE, ONLY_THERE, RENAMED
from lora_loom.trainer.config.aliases import OPTIONS, VALUES
from lora_loom.trainer.config.help_texts import texts
from lora_loom.trainer.config.run import Section, TrainConfig, one_of
from lora_loom.trainer.config.toml import free_on_resume

TARGET = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRO = f"""# Configuration

Every option of a run's TOML file. Written by `python -m scripts.write_config_docs` from `trainer/config/` and `trainer/choices.py`; a test keeps
it true. Any option can be given on the command line too: `lora-loom train run.toml --set training.steps=500`. Relative
paths start from the folder the command is run in.

An unknown option is an error with the nearest known name.

{free_on_resume()} when a run is continued.

```toml
name = "my-cat"

[model]
base = "models/sd3.5-medium"        # a diffusers folder, or one .safetensors file

[[dataset]]
folder = "photos/my-cat"            # with cat.jpg and cat.txt side by side
caption_dropout = 0.1

[training]
steps = 1200
```
"""


PLAIN = {str: "string", int: "integer", float: "number", bool: "true or false", type(None): "nothing"}
PLURAL = {"string": "strings", "integer": "integers", "number": "numbers", "table": "tables"}


def shown_type(hint: object) -> str:
    """A type as people read it: "string", "list of numbers", "`lora` or `dora`"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return shown_type(parts[0])
    if origin is typing.Literal:
        return either([f"`{part}`" for part in parts])
    if origin in (typing.Union, types.UnionType):
        return either([shown_type(part) for part in parts if part is not type(None)])
    if origin is tuple:
        one = shown_type(parts[0])
        return f"{len(parts)} {PLURAL[one]}" if parts[-1] is not ... else f"list of {PLURAL.get(one, f'({one})')}"
    if origin is dict or (isinstance(hint, type) and issubclass(hint, Section)):
        return "table"
    return PLAIN[typing.cast(type, hint)]


def either(names: list[str]) -> str:
    """ "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def shown_default(field: dataclasses.Field[object]) -> str:
    """The default as TOML has it; a dash where leaving the option out means something else than any value."""
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "`{}`"
    if isinstance(field.default, tuple):
        return f"`{list(field.default)}`"
    plain = {"None": "—", "True": "`true`", "False": "`false`"}
    return plain.get(repr(field.default), f"`{field.default!r}`".replace("'", '"'))


def in_cell(text: str) -> str:
    """Text for a cell of a table, where a bar would end the cell, in code too."""
    return text.replace("|", "\\|")


def table(title: str, cls: type[Section]) -> str:
    """The options of a section, then the values of those that are chosen from a table of choices.py."""
    told, hints = texts(cls), typing.get_type_hints(cls)
    rows = [f"## {title}", "", str(cls.__doc__), "", "| option | default | type | what it does |", "|---|---|---|---|"]
    lists: list[str] = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in told:
            continue
        found = one_of(cls, field.name)
        kind = (
            either([*(f"`{value}`" for value in found.choices), *(["a class path"] if found.by_path else [])])
            if found
            else shown_type(hints[field.name])
        )
        default = "see below" if field.name == "guidance" and cls.table == "sweep" else shown_default(field)
        rows.append(f"| `{field.name}` | {in_cell(default)} | {in_cell(kind)} | {in_cell(told[field.name])} |")
        if found:
            lists += ["", f"`{field.name}`:", ""]
            lists += [f"- `{value}`: {choice.help}" for value, choice in found.choices.items()]
            lists += [f"- a class path: {found.by_path.help}"] if found.by_path else []
    return "\n".join([*rows, *lists]) + "\n"


def sections(cls: type[Section]) -> Iterator[type[Section]]:
    """Every section below `cls`, in the order of the fields that hold them."""
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if isinstance(part, type) and issubclass(part, Section):
                yield part
                yield from sections(part)


def former_names() -> str:
    """The options that had another name in an earlier version."""
    rows = [f"| `{table}.{old}` | `{table}.{new}` |" for table, names in OPTIONS.items() for old, new in names.items()]
    rows += [
        f'| `{table}.{name} = "{old}"` | `{table}.{name} = "{new}"` |'
        for table, names in VALUES.items()
        for name, values in names.items()
        for old, new in values.items()
    ]
    text = "They stay valid, in runs and workflows too; a note says the present name. Both at once are an error."
    return "\n".join(["## Former names", "", text, "", "| former | present |", "|---|---|", *rows]) + "\n"


def in_the_graph() -> str:
    """What stands for options that are no input of a node, or why there is nothing."""
    text = "Every other option is an input of the node of its table (Loom Network, Loom Optimizer …) or of Loom Train LoRA."
    rows = [f"| `{name}` | {words} |" for name, words in {**RENAMED, **ELSEWHERE}.items()]
    rows += [f"| `{name}` | only on the command line: {reason} |" for name, reason in ONLY_THERE.items()]
    return "\n".join(["## In ComfyUI's graph", "", text, "", "| option | in a graph |", "|---|---|", *rows]) + "\n"


def page() -> str:
    """The text of docs/configuration.md."""
    lists = ("dataset", "model.base_lora", "sweep.guidance")
    parts = [table("top level", TrainConfig)]
    parts += [
        table(f"[[{cls.table}]]" if cls.table in lists else f"[{cls.table}]", cls) for cls in sections(TrainConfig)
    ]
    return INTRO + "\n" + "\n".join([*parts, in_the_graph(), former_names()])


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET}")
