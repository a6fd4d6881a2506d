"""`lora-loom cache CONFIG` fills the cache of a run; `cache verify | stats | prune` maintain a cache."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import DataError
from .common import AsJson, ConfigFile, Set, command_host, load, report, say_loading

if TYPE_CHECKING:
    from ..config.run import TrainConfig
    from ..runs.headless import Prepared
    from ..runs.session import Host

FILL = "fill"
Where = Annotated[
    Path,
    typer.Argument(help="A cache folder, or the TOML file of a run that uses it.", show_default=False),
]


class _FillByDefault(TyperGroup):
    """A command group in which `cache run.toml` means `cache fill run.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # click's Context, or typer's own copy of it
        """Insert the word fill where the first argument is not a command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [FILL, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_FillByDefault, no_args_is_help=True, rich_markup_mode=None,
                  help="Encode images without training, or maintain a cache.")  # fmt: skip


@app.command(FILL)
def fill(
    config: ConfigFile,
    overrides: Set = [],  # noqa: B006
    to: Annotated[
        Path | None,
        typer.Option("--report", help="Folder for report.txt, report.json and contact sheets with the crops."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Encode images and captions without training.

    \b
    Examples:
      lora-loom cache fill cat.toml
      lora-loom cache cat.toml

    The word fill may be left out.
    """
    say_loading(as_json)
    from ..runs.headless import build_cache, prepare

    settings = load(config, overrides, as_json)
    with command_host(as_json) as host:
        prepared = prepare(settings, host)
        if to is not None:
            _write_report(prepared, to)
        done = build_cache(prepared, host)
    report(as_json, done.text(), **asdict(done))


def _write_report(prepared: "Prepared", folder: Path) -> None:
    """Write report.txt, report.json and the contact sheets."""
    import io

    from ..data.contact_sheet import contact_sheets, thumbnails
    from ..data.report import epochs, epochs_text
    from ..storage.atomic import write_bytes, write_json

    training, dataset = prepared.config.training, prepared.report
    forward_passes = training.gradient_accumulation_steps * prepared.processes.count
    sizes = (training.batch_size, forward_passes, training.steps)
    write_bytes(folder / "report.txt", f"{dataset.text()}\n{epochs_text(dataset, *sizes)}\n".encode())
    write_json(folder / "report.json", {**dataset.to_dict(), "training": epochs(dataset, *sizes)})
    title = f"{prepared.config.name}: {len(prepared.dataset.examples)} images as they are cropped for training"
    for number, page in enumerate(contact_sheets(thumbnails(prepared.dataset, dataset), title), 1):
        buffer = io.BytesIO()
        page.save(buffer, "png")
        write_bytes(folder / f"contact-sheet-{number:02d}.png", buffer.getvalue())


@app.command()
def verify(where: Where, as_json: AsJson = False) -> None:
    """Read and verify every byte of a cache.

    \b
    Examples:
      lora-loom cache verify output/cache

    Damaged shards are moved to quarantine, their items are encoded again when needed.
    """
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import verify as check

    with command_host(as_json) as host:
        result = check(open_cache(_folder(where, as_json)), lambda done, total: host.stage("verifying", done, total))
    report(as_json, result.text(), **asdict(result))
    if result.damaged:
        raise typer.Exit(DataError.exit_code)


@app.command()
def stats(where: Where, as_json: AsJson = False) -> None:
    """Print the size of a cache, its items and its last use.

    \b
    Examples:
      lora-loom cache stats output/cache

    Nothing is changed.
    """
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import stats as count

    with command_host(as_json):
        result = count(open_cache(_folder(where, as_json)))
    report(as_json, result.text(), **asdict(result))


@app.command()
def prune(
    where: Where,
    keep: Annotated[
        list[Path],
        typer.Option(
            "--keep", help="The TOML file of a run. Items that none of these runs needs are deleted. May be repeated."
        ),
    ] = [],  # noqa: B006
    unused_days: Annotated[
        float, typer.Option(help="Delete shards that no run has used for this many days.", min=0)
    ] = 0.0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what a cache no longer needs.

    \b
    Examples:
      lora-loom cache prune output/cache --unused-days 30 --dry-run

    That is damaged and half-written files and, with --keep or --unused-days, items that no run needs any more.
    """
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import prune as delete

    configs = [load(path, [], as_json) for path in keep]
    with command_host(as_json) as host:
        folder = _folder(where, as_json)
        wanted = set().union(*(_keys(config, host) for config in configs)) if keep else None
        result = delete(open_cache(folder), unused_days=unused_days, keep=wanted, dry=dry)
    report(as_json, result.text(), **asdict(result))


def _folder(where: Path, as_json: bool) -> Path:
    """The cache folder that an argument names directly or by a run's TOML file."""
    from ..runs.plan import cache_folder

    return cache_folder(load(where, [], as_json)) if where.is_file() else where


def _keys(config: "TrainConfig", host: "Host") -> set[str]:
    """The keys of all items that a run needs."""
    from ..data.cache.keys import wanted
    from ..runs.headless import prepare

    prepared = prepare(config, host)
    views, prompts = wanted(prepared.dataset, prepared.identity)
    return {*views, *prompts}
