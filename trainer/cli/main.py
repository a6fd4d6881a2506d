"""`lora-loom`: the command line. Each command is a few lines over the same Python calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import cache as cli_cache
from . import comfy_api as cli_server
from . import convert as cli_convert
from . import lora_tools as cli_tools
from .common import AsJson, ConfigFile, Set, asked, load, report, watched

STOPPED_EXIT_CODE = 130

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Train LoRAs, sweep their checkpoints and see which is best.")  # fmt: skip


@app.command()
def train(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006 - typer wants a list
    format: Annotated[
        str,
        typer.Option(help="Names in the LoRA files: native (ComfyUI), diffusers or kohya; short for output.format."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Train a LoRA; continue the run of this name if it exists. Ctrl-C saves and stops."""
    from ..runs.headless import run_folder
    from ..runs.headless import train as run_training

    chosen = [f"output.format={format}"] if format else []
    settings = load(config, [*overrides, *chosen], as_json)
    with watched(as_json, run_folder(settings), together=True) as host:
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


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006
    lora: Annotated[
        list[Path],
        typer.Option(
            "--lora", help="A LoRA file, a folder or a pattern to compare instead of the run's checkpoints; repeat it."
        ),
    ] = [],  # noqa: B006
    yes: Annotated[bool, typer.Option("--yes", help="Render more than sweep.max_cells without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Render base and checkpoints for the prompts of the [sweep] table, then draw the strip. Goes on where it stopped."""
    from ..sweep.run import sweep as run_sweep
    from ..sweep.run import write_strips, write_tables

    settings = load(config, overrides, as_json)
    with watched(as_json) as host:
        sheet = run_sweep(settings, host, lora, lambda text: yes or asked(text))
        layout: Any = {
            "columns": ("checkpoint", "strength"),
            "rows": ("reference", "prompt", "seed"),
            "title": settings.name,
        }
        strips, tables = write_strips(sheet, **layout), write_tables(sheet, **layout)
    shown = [str(path) for path in strips]
    report(as_json, f"{sheet.rendered} cells rendered; {', '.join(map(str, [*strips, *tables]))}", cells=len(sheet.cells), rendered=sheet.rendered, strips=shown, tables=[str(path) for path in tables])  # fmt: skip


@app.command()
def strip(
    folder: Annotated[Path, typer.Argument(help="A run's strips folder, where sheet.json is.", show_default=False)],
    columns: Annotated[str, typer.Option(help="Axes from left to right.")] = "checkpoint,strength",
    rows: Annotated[str, typer.Option(help="Axes from top to bottom.")] = "reference,prompt,seed",
    title: Annotated[str, typer.Option(help="Heading; the run's name if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Lay a finished sweep out anew. Axes: checkpoint, strength, prompt, seed, guidance, reference, size, steps, sampler; those left out make pages."""
    from ..errors import ConfigError, did_you_mean
    from ..sweep.run import load_sheet, write_strips, write_tables
    from ..sweep.strip import AXES

    with watched(as_json):
        sides = [[axis.strip() for axis in side.split(",") if axis.strip()] for side in (columns, rows)]
        for axis in [*sides[0], *sides[1]]:
            if axis not in AXES:
                raise ConfigError(f"axis {axis!r}: {did_you_mean(axis, list(AXES))}")
        heading = title or folder.resolve().parent.name
        sheet = load_sheet(folder)
        layout: Any = {"columns": sides[0], "rows": sides[1], "title": heading}
        strips, tables = ([str(path) for path in write(sheet, **layout)] for write in (write_strips, write_tables))
    report(as_json, ", ".join([*strips, *tables]), strips=strips, tables=tables)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(help="A run's strips folder, where sheet.json is.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option("--config", help="The run's TOML file; left out, the run's own record is read.")
    ] = None,
    trigger: Annotated[
        list[str], typer.Option(help="A word that calls what was trained, to measure drift without it; repeat it.")
    ] = [],  # noqa: B006
    encoder: Annotated[str, typer.Option(help="Folder of a CLIP (transformers) to compare pictures by.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say which checkpoint of a finished sweep to take, how sure that is, and frame it in the strip."""
    from ..score.run import score_sheet
    from ..sweep.run import write_strips, write_tables

    settings = load(config, [], as_json) if config else None
    with watched(as_json) as host:
        done = score_sheet(folder, host, config=settings, triggers=trigger, encoder=encoder)
        layout: Any = {
            "columns": ("checkpoint", "strength"),
            "rows": ("prompt", "seed"),
            "title": folder.resolve().parent.name,
        }
        written = [*done.files, *write_strips(done.sheet, **layout), *write_tables(done.sheet, **layout)]
    report(as_json, "\n".join([done.text, *map(str, written)]), score=done.score.to_dict(), files=[str(path) for path in written])  # fmt: skip


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where images, run and strip are written.")] = Path("output/demo"),
    seed: Annotated[int, typer.Option(help="Decides pictures, order and noise.")] = 0,
    learning_rate: Annotated[
        float, typer.Option(help="For trying what happens, e.g. 1e-12 learns nothing and fails.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Teach the tiny base of this repository something new, and check that it was learnt. No download."""
    from ..demo.demo import run_demo

    with watched(as_json) as host:
        result = run_demo(directory, host, seed=seed, learning_rate=learning_rate)
    report(as_json, result.text, **result.values)


app.add_typer(cli_cache.app, name="cache")
cli_tools.register(app)
cli_convert.register(app)
cli_server.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Console entry point."""
    run: Callable[..., Any] = app
    run(args=arguments)
