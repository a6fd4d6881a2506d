"""`lora-loom`, the command line. Each command is a few lines that call the Python interface."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LoomError
from . import cache as cli_cache
from . import comfy_api as cli_server
from . import convert as cli_convert
from . import images as cli_images
from . import importing as cli_importing
from . import local_runs as cli_local
from . import lora_tools as cli_tools
from . import plan as cli_plan
from . import plot as cli_plot
from .aliases import AliasedCommand
from .choices import RunCommand
from .common import (
    AsJson,
    ConfigFile,
    ConfigOrRun,
    Set,
    SheetPath,
    command_host,
    confirm,
    load,
    load_run,
    report,
    say_loading,
    unexpected,
)
from .quiet import silence_libraries

if TYPE_CHECKING:
    from ..sweep.run import Sheet

STOPPED_EXIT_CODE = 130
"""The usual exit code of a process that Ctrl-C ended."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"max_content_width": 120, "help_option_names": ["--help", "-h"]})  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lora-loom {version('lora-loom')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train LoRAs, compare their checkpoints on a grid of images and rank them.

    \b
    First steps:
      lora-loom demo                 all of it at once on a tiny model
      lora-loom new cat.toml         write a first TOML file by asking
      lora-loom train cat.toml       train it
      lora-loom sweep cat.toml       images for every checkpoint, as a grid

    Each command has examples: lora-loom COMMAND --help.
    """
    silence_libraries()


@app.command(cls=RunCommand)
def train(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006 - typer requires a list
    format: Annotated[
        str,
        typer.Option(
            help="Key format of the LoRA files: native (ComfyUI), diffusers or kohya. The same as --set output.format=…"
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Train a LoRA, or resume the run of this name.

    \b
    Examples:
      lora-loom train cat.toml
      lora-loom train cat.toml --set training.steps=500 --set network.rank=8

    Ctrl-C saves a checkpoint and stops; the same command goes on from there.
    """
    say_loading(as_json)
    from ..runs.headless import run_folder
    from ..runs.headless import train as run_training

    chosen = [f"output.format={format}"] if format else []
    settings = load(config, [*overrides, *chosen], as_json)
    with command_host(as_json, run_folder(settings), distributed=True) as host:
        outcome = run_training(settings, host)
    values = {
        "state": outcome.state,
        "step": outcome.step,
        "lora": str(outcome.lora),
        "max_relative_error": outcome.max_relative_error,
        "best": outcome.best,
    }
    report(as_json, f"{outcome.state} at step {outcome.step}: {outcome.lora}", **values)
    if outcome.state == "stopped":
        raise typer.Exit(STOPPED_EXIT_CODE)


@app.command(cls=RunCommand)
def sweep(
    config: ConfigOrRun,
    overrides: Set = [],  # noqa: B006
    lora: Annotated[
        list[Path],
        typer.Option(
            "--lora",
            help="A LoRA file, a folder or a pattern to compare instead of the run's checkpoints. May be repeated.",
        ),
    ] = [],  # noqa: B006
    yes: Annotated[
        bool, typer.Option("--yes", help="Generate more than sweep.max_cells images without asking.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Generate images with every checkpoint, as a grid.

    \b
    Examples:
      lora-loom sweep cat.toml
      lora-loom sweep output/cat --set model.base=sdxl.safetensors
      lora-loom sweep cat.toml --lora "others/*.safetensors"

    The images are those of the [sweep] table, for the base model and every checkpoint. A sweep resumes where it stopped.
    """
    say_loading(as_json)
    from ..sweep.run import sweep as run_sweep

    settings = load_run(config, overrides, as_json)
    with command_host(as_json) as host:
        sheet = run_sweep(settings, host, lora, lambda question: yes or confirm(question))
        strips, tables = _draw(sheet, ("checkpoint", "strength"), ("reference", "prompt", "seed"), settings.name)
    text = f"{sheet.rendered} images generated; {', '.join([*strips, *tables])}"
    report(as_json, text, cells=len(sheet.cells), rendered=sheet.rendered, strips=strips, tables=tables)


def _draw_images(folder: Path, per_row: int, title: str) -> tuple[list[str], list[str]]:
    """Write the strip of a folder of images into it. Returns the paths of (images, tables)."""
    from ..storage.atomic import write_bytes
    from ..sweep.image_strip import image_strip, images_in

    buffer = io.BytesIO()
    image_strip(images_in(folder), (), columns=per_row, title=title).save(buffer, "png", optimize=True)
    write_bytes(folder / "strip.png", buffer.getvalue())
    return [str(folder / "strip.png")], []


def _draw(
    sheet: "Sheet", columns: Sequence[str], rows: Sequence[str], title: str, *, layout: str = "grid"
) -> tuple[list[str], list[str]]:
    """Write a sweep's grid as images and as tables. Returns the paths of (images, tables)."""
    from ..sweep.run import write_panels, write_strips, write_tables

    if layout == "panels":
        strips, tables = write_panels(sheet, title=title)
        return [str(path) for path in strips], [str(path) for path in tables]
    strips = write_strips(sheet, columns=columns, rows=rows, title=title)
    tables = write_tables(sheet, columns=columns, rows=rows, title=title)
    return [str(path) for path in strips], [str(path) for path in tables]


@app.command()
def strip(
    folder: SheetPath,
    columns: Annotated[str, typer.Option(help="Axes from left to right.")] = "checkpoint,strength",
    rows: Annotated[str, typer.Option(help="Axes from top to bottom.")] = "reference,prompt,seed",
    title: Annotated[str, typer.Option(help="Heading; by default the run's name.")] = "",
    layout: Annotated[
        str, typer.Option(help="grid, or panels: base, last LoRA, and last LoRA with APG side by side.")
    ] = "grid",
    per_row: Annotated[int, typer.Option(min=0, help="Images in a row, of a folder of images; 0: all in one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw the grid of a sweep anew, or the images of a folder.

    \b
    Examples:
      lora-loom strip output/cat/strips
      lora-loom strip output/cat/strips --columns strength --rows checkpoint
      lora-loom strip output/cat/samples --per-row 4

    Axes: checkpoint, strength, prompt, seed, guidance, reference, size, steps, sampler. There is one page for each combination of the axes that are neither columns nor rows.
    """
    from ..errors import ConfigError, did_you_mean
    from ..sweep.run import find_sheet, load_sheet
    from ..sweep.strip import AXES

    with command_host(as_json):
        across, down = ([axis.strip() for axis in side.split(",") if axis.strip()] for side in (columns, rows))
        for axis in [*across, *down]:
            if axis not in AXES:
                raise ConfigError(f"axis {axis!r}: {did_you_mean(axis, list(AXES))}")
        if layout not in ("grid", "panels"):
            raise ConfigError(f"layout = {layout!r}: use grid or panels")
        if layout == "grid" and folder.is_dir() and not any(folder.glob("sheet*.json")):
            strips, tables = _draw_images(folder, per_row, title or folder.resolve().name)
        else:
            sheet = load_sheet(*find_sheet(folder))
            strips, tables = _draw(sheet, across, down, title or sheet.folder.resolve().parent.name, layout=layout)
    report(as_json, ", ".join([*strips, *tables]), strips=strips, tables=tables)


@app.command(cls=AliasedCommand)
def score(
    folder: SheetPath,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="The run's TOML file; by default the configuration is read from the run's folder."
        ),
    ] = None,
    trigger: Annotated[
        list[str],
        typer.Option(help="A trigger word of the LoRA, to measure drift in prompts without it. May be repeated."),
    ] = [],  # noqa: B006
    clip_model: Annotated[
        str, typer.Option(help="Folder of a CLIP model (transformers format) that images are compared with.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Rank the checkpoints of a sweep, and mark the best.

    \b
    Examples:
      lora-loom score output/cat/strips
      lora-loom score output/cat/strips --trigger "zwx cat"

    Differences come with confidence intervals; only what leads clearly is recommended.
    """
    say_loading(as_json)
    from ..score.run import score_sheet

    settings = load(config, [], as_json) if config else None
    with command_host(as_json) as host:
        done = score_sheet(folder, host, config=settings, triggers=trigger, encoder=clip_model)
        title = done.sheet.folder.resolve().parent.name
        strips, tables = _draw(done.sheet, ("checkpoint", "strength"), ("prompt", "seed"), title)
        written = [*map(str, done.files), *strips, *tables]
    report(as_json, "\n".join([done.text, *written]), score=done.score.to_dict(), files=written)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Folder for the images, the run and the grid.")] = Path("output/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the images, their order and the noise.")] = 0,
    learning_rate: Annotated[
        float,
        typer.Option(help="Another learning rate, to see its effect; 1e-12, for example, learns nothing and fails."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Train a tiny model, to see all of it at once.

    \b
    Examples:
      lora-loom demo
      lora-loom demo --directory try --seed 1

    The tiny base model of this repository learns a new concept, and it is checked that it did. Nothing is downloaded.
    """
    say_loading(as_json)
    from ..demo.demo import run_demo

    with command_host(as_json) as host:
        result = run_demo(directory, host, seed=seed, learning_rate=learning_rate)
    report(as_json, result.text, **result.values)


app.add_typer(cli_cache.app, name="cache")
cli_local.register(app)
cli_tools.register(app)
cli_convert.register(app)
cli_importing.register(app)
cli_server.register(app)
cli_plan.register(app)
cli_plot.register(app)
cli_images.register(app)


def main(arguments: list[str] | None = None) -> None:
    """The console entry point; `arguments` are those of the process by default."""
    try:
        app(args=arguments)
    except Exception as error:  # noqa: BLE001 - what commands without a host raise
        known = error if isinstance(error, LoomError) else unexpected(error)
        sys.stderr.write(f"error: {known}\n")
        sys.exit(known.exit_code)


if __name__ == "__main__":
    main()
