"""`lora-loom cache CONFIG` fills the cache; `cache verify | stats | prune` look after one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import DataError
from .common import AsJson, ConfigFile, Set, load, report, watched

if TYPE_CHECKING:
    from ..runs.headless import Prepared
    from ..runs.session import Host

FILL = "fill"
Where = Annotated[
    Path,
    typer.Argument(help="A cache folder, or the TOML file of a run that uses it.", show_default=False),
]


class _FillByDefault(TyperGroup):
    """`cache run.toml` is `cache fill run.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [FILL, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_FillByDefault, no_args_is_help=True, rich_markup_mode=None,
                  help="Encode images and captions without training: cache CONFIG. Or look after a cache.")  # fmt: skip


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
    """Encode images and captions, without training. The word fill may be left out."""
    from ..runs.headless import build_cache, prepare

    settings = load(config, overrides, as_json)
    with watched(as_json) as host:
        prepared = prepare(settings, host)
        if to is not None:
            _write_report(prepared, to)
        done = build_cache(prepared, host)
    report(as_json, done.text(), **asdict(done))


def _write_report(prepared: "Prepared", folder: Path) -> None:
    import io

    from ..data.contact_sheet import contact_sheets, thumbnails
    from ..data.report import epochs, epochs_text
    from ..storage.atomic import write_bytes, write_json

    training, found = prepared.config.training, prepared.report
    forward_passes = training.gradient_accumulation_steps * prepared.processes.count
    place = (training.batch_size, forward_passes, training.steps)
    write_bytes(folder / "report.txt", f"{found.text()}\n{epochs_text(found, *place)}\n".encode())
    write_json(folder / "report.json", {**found.to_dict(), "training": epochs(found, *place)})
    title = f"{prepared.config.name}: {len(prepared.dataset.examples)} images as they are trained"
    for number, page in enumerate(contact_sheets(thumbnails(prepared.dataset, found), title), 1):
        buffer = io.BytesIO()
        page.save(buffer, "png")
        write_bytes(folder / f"contact-sheet-{number:02d}.png", buffer.getvalue())


@app.command()
def verify(where: Where, as_json: AsJson = False) -> None:
    """Read every byte of a cache; what is damaged is moved aside and encoded again when it is next needed."""
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import verify as check

    with watched(as_json) as host:
        found = check(open_cache(_folder(where, as_json)), lambda done, total: host.stage("verifying", done, total))
    report(as_json, found.text(), **asdict(found))
    if found.damaged:
        raise typer.Exit(DataError.exit_code)


@app.command()
def stats(where: Where, as_json: AsJson = False) -> None:
    """How much a cache holds, of what, and when it was last used."""
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import stats as count

    with watched(as_json):
        found = count(open_cache(_folder(where, as_json)))
    report(as_json, found.text(), **asdict(found))


@app.command()
def prune(
    where: Where,
    keep: Annotated[
        list[Path],
        typer.Option("--keep", help="The TOML file of a run: what none of these needs goes. Repeat it."),
    ] = [],  # noqa: B006
    unused_days: Annotated[float, typer.Option(help="What no run has used for so many days goes.", min=0)] = 0.0,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take away damaged and half-written files, and with --keep or --unused-days what is no longer needed."""
    from ..data.cache.maintenance import open_cache
    from ..data.cache.maintenance import prune as take_away

    configs = [load(path, [], as_json) for path in keep]
    with watched(as_json) as host:
        folder = _folder(where, as_json)
        wanted = set().union(*(_keys(config, host) for config in configs)) if keep else None
        found = take_away(open_cache(folder), unused_days=unused_days, keep=wanted, dry=dry)
    report(as_json, found.text(), **asdict(found))


def _folder(where: Path, as_json: bool) -> Path:
    from ..runs.headless import cache_folder

    return cache_folder(load(where, [], as_json)) if where.is_file() else where


def _keys(config: Any, host: "Host") -> set[str]:
    """Everything in the cache that a run needs."""
    from ..data.cache.keys import wanted
    from ..runs.headless import prepare

    prepared = prepare(config, host)
    views, prompts = wanted(prepared.dataset, prepared.identity)
    return {*views, *prompts}
