"""`lora-loom plan`: how much memory and time a run will take, before anything is loaded."""

import typer

from .choices import RunCommand
from .common import AsJson, ConfigFile, Set, command_host, load, report, say_loading


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(cls=RunCommand)(plan)


def plan(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006 - typer requires a list
    as_json: AsJson = False,
) -> None:
    """Predict the memory and the time of a run without loading it.

    \b
    Examples:
      lora-loom plan cat.toml
      lora-loom plan cat.toml --set data.resolution=768

    Only the headers of its files are read. LORA_LOOM_VRAM_GB=12 plans for a card of 12 GB.
    """
    say_loading(as_json)
    from ..runs.headless import plan_memory, prepare

    settings = load(config, overrides, as_json)
    with command_host(as_json) as host:
        made = plan_memory(prepare(settings, host), every_bucket=True)
    report(as_json, made.text(), memory_plan=made.to_dict())
