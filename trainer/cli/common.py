"""What all commands share: common options, the host of a run, and how results and errors are printed."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..distributed.launch import launched
from ..errors import ConfigError, LoomError, PeerError, StoppedError

if TYPE_CHECKING:
    from ..config.run import TrainConfig
    from ..runs.run_folder import RunFolder
    from .console import JsonHost

ConfigFile = Annotated[Path, typer.Argument(help="The run's TOML file.", show_default=False)]
ConfigOrRun = Annotated[
    Path,
    typer.Argument(
        help="The run's TOML file, or the folder of a run, which ComfyUI may have trained.", show_default=False
    ),
]
SheetPath = Annotated[
    Path,
    typer.Argument(
        help="The strips folder of a run, of whose sheets the newest is taken, or one sheet*.json.", show_default=False
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=C", help="Override a setting, e.g. training.steps=500. May be repeated."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line instead of text and progress bars.")
]


def say_loading(as_json: bool) -> None:
    """On a terminal, a line that something happens: importing torch and the networks takes seconds."""
    if not as_json and launched().rank == 0 and sys.stderr.isatty():
        sys.stderr.write("loading …\n")
        sys.stderr.flush()


def load(config: Path, overrides: list[str], as_json: bool) -> "TrainConfig":
    """Read a configuration. An error in it is printed and ends the process with its exit code."""
    from ..config.aliases import log_note, no_note
    from ..config.toml import load as read

    try:
        return read(config, overrides, log_note if launched().rank == 0 else no_note)
    except LoomError as error:
        fail(_with_import(config, error), as_json)


def _with_import(config: Path, error: LoomError) -> LoomError:
    """The error, or the sentence that a file of another trainer has to be imported first."""
    from ..importers.read import recognise

    kind = recognise(config)
    if kind is None:
        return error
    return ConfigError(
        f"{config} is {kind.title}: lora-loom import {config} writes the TOML file that this command takes"
    )


def load_run(path: Path, overrides: list[str], as_json: bool) -> "TrainConfig":
    """The configuration of a TOML file, or of the run in a folder."""
    from ..runs.record import run_config
    from ..runs.run_folder import RunFolder

    if not path.is_dir():
        return load(path, overrides, as_json)
    try:
        return run_config(RunFolder(path.resolve()), overrides)
    except LoomError as error:
        fail(error, as_json)


@contextmanager
def command_host(
    as_json: bool, folder: "RunFolder | None" = None, *, distributed: bool = False
) -> "Iterator[JsonHost]":
    """The host of a command: progress for a person or JSON lines for a program. Errors become one line and an exit code.

    `folder` also receives the log. `distributed`: a launcher may have started several processes for this command; only the
    first one prints.
    """
    from .console import ConsoleHost, JsonHost, QuietHost, StopSignal

    rank, count = launched().rank, launched().count
    if count > 1 and not distributed:
        fail(ConfigError(f"{count} processes were started, but only train runs on several: start this command without a launcher"), as_json)  # fmt: skip
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
            folder.log(str(error) if isinstance(error, StoppedError) else f"error: {error}")
        fail(error, as_json)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001 - nobody else turns it into a line
        fail(unexpected(error), as_json)
    finally:
        stop.restore()


def unexpected(error: Exception) -> LoomError:
    """An error that nobody foresaw, as a line that names the file with its traceback. `LORA_LOOM_TRACEBACK=1` raises it as it is."""
    if os.environ.get("LORA_LOOM_TRACEBACK"):
        raise error
    said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="lora-loom-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.writelines(traceback.format_exception(error))
        details = f"its traceback is in {file.name}; "
    except OSError:
        details = ""
    return LoomError(f"unexpected {said}. This is a mistake of LoRA Loom: {details}please report it")


def confirm(question: str) -> bool:
    """Ask the person at the terminal. False if the input does not come from a terminal."""
    return sys.stdin.isatty() and typer.confirm(f"{question}. Continue?")


def fail(error: LoomError, as_json: bool) -> NoReturn:
    """Print an error and end the process with its exit code."""
    rank = launched().rank
    word = "" if isinstance(error, StoppedError) else "error: "  # what somebody asked for is none
    if as_json:
        event: dict[str, object] = {"event": "error", "kind": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps({**event, **({"process": rank} if rank else {})}) + "\n")
    elif not (rank and isinstance(error, PeerError)):  # the process that failed, or the first one, prints it
        sys.stderr.write(f"{word}{f'process {rank}: ' if rank else ''}{error}\n")
    raise typer.Exit(error.exit_code) from error


def report(as_json: bool, text: str, **values: object) -> None:
    """Print the result of a command: `text` for a person, `values` as one JSON object for a program."""
    if launched().rank > 0:
        return
    from .console import LastingStream

    stream = LastingStream(sys.stdout)
    stream.write((json.dumps({"event": "result", **values}) if as_json else text) + "\n")
    stream.flush()
