"""`lora-loom import`: a configuration of another trainer as a TOML file for `lora-loom train`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .common import AsJson, command_host, report

Source = Annotated[
    Path,
    typer.Argument(
        help="A file of SimpleTuner, sd-scripts, LoRA_Easy_Training_Scripts, musubi-tuner, ai-toolkit, OneTrainer or diffusion-pipe, or a "
        "script with the command that trains; - reads a pasted command or configuration from standard input.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("import")(import_)


def import_(
    file: Source,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new TOML file; by default NAME.toml in the current folder.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the TOML file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Translate a configuration of another trainer.

    \b
    Examples:
      lora-loom import config.toml --out cat.toml
      lora-loom import ai-toolkit.yaml

    It lists what was taken exactly, nearly, is not needed or has no counterpart.
    """
    from ..data.sets.checks import Surroundings
    from ..importers.read import import_file, import_text
    from ..storage.atomic import write_bytes

    with command_host(as_json):
        done = (
            import_text(sys.stdin.read(), Surroundings(Path()), "the text") if str(file) == "-" else import_file(file)
        )
        target = out or Path(f"{done.config.name}.toml")
        if target.exists() and not overwrite:
            raise ConfigError(f"out = {str(target)!r} exists: use another name, or --overwrite")
        write_bytes(target, done.toml.encode())
    options = [asdict(one) for one in done.taken]
    text = f"{done.text()}\n\n{target}: check it, then lora-loom train {target}"
    report(as_json, text, out=str(target), counts=done.counts(), options=options, notes=list(done.notes))
