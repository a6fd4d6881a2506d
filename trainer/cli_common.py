"""What every command shares: who watches, how results and problems are told, the options they have in common."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import LoomError

if TYPE_CHECKING:
    from .console import JsonHost
    from .runs import RunFolder

ConfigFile = Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a setting, e.g. training.steps=500.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of progress.")]


def load(config: Path, overrides: list[str], as_json: bool) -> Any:
    """The configuration; a problem with it ends the process with its plain line."""
    from .config_file import load as read

    try:
        return read(config, overrides)
    except LoomError as error:
        fail(error, as_json)


@contextmanager
def watched(as_json: bool, folder: "RunFolder | None" = None) -> "Iterator[JsonHost]":
    """Whoever watches: a person or a program. Problems become one plain line and an exit code."""
    from .console import ConsoleHost, JsonHost, StopSignal

    stop = StopSignal()
    try:
        if as_json:
            yield JsonHost(stop, folder)
        else:
            with ConsoleHost(stop, folder) as host:
                yield host
    except LoomError as error:
        if folder is not None and folder.path.is_dir():
            folder.log(f"error: {error}")
        fail(error, as_json)
    finally:
        stop.restore()


def fail(error: LoomError, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"event": "error", "kind": type(error).__name__, "message": str(error)}) + "\n")
    else:
        sys.stderr.write(f"error: {error}\n")
    raise typer.Exit(error.exit_code) from error


def report(as_json: bool, text: str, **values: Any) -> None:
    sys.stdout.write((json.dumps({"event": "result", **values}) if as_json else text) + "\n")
