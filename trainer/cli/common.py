"""What every command shares: who watches, how results and problems are told, the options they have in common."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..distributed.launch import launched
from ..errors import ConfigError, LoomError, PeerError

if TYPE_CHECKING:
    from ..runs.run_folder import RunFolder
    from .console import JsonHost

ConfigFile = Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a setting, e.g. training.steps=500.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of progress.")]


def load(config: Path, overrides: list[str], as_json: bool) -> Any:
    """The configuration; a problem with it ends the process with its plain line."""
    from ..config.toml import load as read

    try:
        return read(config, overrides)
    except LoomError as error:
        fail(error, as_json)


@contextmanager
def watched(as_json: bool, folder: "RunFolder | None" = None, *, together: bool = False) -> "Iterator[JsonHost]":
    """Whoever watches: a person or a program. Problems become one plain line and an exit code.

    `together`: several processes started by a launcher work on it as one, and the first one speaks for them.
    """
    from .console import ConsoleHost, JsonHost, QuietHost, StopSignal

    rank, count = launched().rank, launched().count
    if count > 1 and not together:
        fail(ConfigError(f"{count} processes were started: only train runs on several, start this one plainly"), as_json)  # fmt: skip
    folder = folder if rank == 0 else None
    stop = StopSignal()
    try:
        if rank > 0:
            yield QuietHost(stop)
        elif as_json:
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


def asked(question: str) -> bool:
    """Ask whoever sits at the terminal; nobody does where input comes from elsewhere."""
    return sys.stdin.isatty() and typer.confirm(f"{question}. Go on?")


def fail(error: LoomError, as_json: bool) -> None:
    rank = launched().rank
    if as_json:
        told = {"event": "error", "kind": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps({**told, **({"process": rank} if rank else {})}) + "\n")
    elif not (rank and isinstance(error, PeerError)):  # the one that has ended, or the first process, says it
        sys.stderr.write(f"error: {f'process {rank}: ' if rank else ''}{error}\n")
    raise typer.Exit(error.exit_code) from error


def report(as_json: bool, text: str, **values: Any) -> None:
    if launched().rank > 0:
        return
    sys.stdout.write((json.dumps({"event": "result", **values}) if as_json else text) + "\n")
