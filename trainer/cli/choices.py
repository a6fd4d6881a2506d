"""The values of options in `--help`: read from the tables when help is requested, so that every entry of a table is listed."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from .aliases import AliasedCommand


def choices() -> Iterator[tuple[str, str]]:
    """Returns ("optimizer.name", "adamw, lion, …") of every option whose values stand in a table of choices.py."""
    from ..config import run

    sections = {cls for cls in vars(run).values() if isinstance(cls, type) and issubclass(cls, run.Section)}
    for cls in sorted(sections, key=lambda section: section.table):
        for field in fields(cls) if cls is not run.Section else ():  # type: ignore[arg-type]
            if table := run.one_of(cls, field.name):
                yield f"{cls.table}.{field.name}", ", ".join(table.choices)


class RunCommand(AliasedCommand):
    """A command that takes a run's TOML file: its help ends with what can be chosen there."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # of click, which newer versions of typer have inside
        with formatter.section("Values for the TOML file and --set (all options: docs/configuration.md)"):
            formatter.write_dl(list(choices()))
