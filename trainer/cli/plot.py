"""`lora-loom plot`: what a configuration means, drawn before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

from .choices import RunCommand
from .common import AsJson, ConfigFile, Set, command_host, load, report

DRAWN = 1000
"""Steps in the plot of a run whose length follows from its images, which are not read here."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=RunCommand)(plot)


def plot(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006 - typer requires a list
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG; by default NAME-schedule.png in the current folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the learning rate of a run over its steps.

    \b
    Examples:
      lora-loom plot cat.toml
      lora-loom plot cat.toml --set schedule.kind=cosine -o rate.png

    Nothing is loaded or trained.
    """
    from ..drawing.plots import png, rate_plot
    from ..errors import ConfigError
    from ..storage.atomic import write_bytes
    from ..training.advice import advice
    from ..training.schedule import lr_factor

    settings = load(config, overrides, as_json)
    with command_host(as_json) as host:
        path = output or Path(f"{settings.name}-schedule.png")
        if path.suffix.lower() != ".png":
            raise ConfigError(f"--output {str(path)!r}: end it in .png")
        schedule, steps = settings.schedule, settings.training.steps or DRAWN
        if not settings.training.steps:
            host.log(f"training.steps follows from the images: drawn for {DRAWN} steps")
        factors = [lr_factor(step, steps, schedule) for step in range(steps)]
        rate = settings.optimizer.learning_rate
        peak = None if isinstance(rate, str) else rate
        for note in advice(settings.optimizer, schedule, steps) if peak else ():
            host.log(f"note: {note}")
        write_bytes(path, png(rate_plot(factors, f"{settings.name}: {schedule.kind}", peak)))
    unit = peak or 1.0
    quarters = {step + 1: unit * factors[step] for step in sorted({round(i * (steps - 1) / 4) for i in range(5)})}
    lines = [f"step {step:>7}: {rate:.3g}" for step, rate in quarters.items()]
    report(as_json, "\n".join([*lines, str(path)]), plot=str(path), steps=steps, rates=[unit * f for f in factors])
