"""`lora-loom doctor`: which training images of a run stand out, and why."""

from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, ConfigOrRun, Set, command_host, load_run, report

if TYPE_CHECKING:
    from ..config.run import TrainConfig
    from ..runs.session import Host
    from ..types import Record


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)


def doctor(
    config: ConfigOrRun,
    overrides: Set = [],  # noqa: B006 - typer requires a list
    again: Annotated[bool, typer.Option("--again", help="Examine a run that was examined before once more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which training images of a run stand out.

    \b
    Examples:
      lora-loom doctor output/cat
      lora-loom doctor cat.toml --json

    Captions that contradict their image, images that fight the others or teach nothing, near doubles, captions that take too much
    of an epoch; each with an interval. Nothing is changed. A run with validation.doctor = true was examined while it trained.
    """
    from ..doctor.report import read_diagnosis, text_of
    from ..runs.run_folder import RunFolder

    with command_host(as_json) as host:
        kept = (
            read_diagnosis(config) if config.is_dir() and RunFolder(config.resolve()).exists() and not again else None
        )
        found = kept or _examine(load_run(config, overrides, as_json), host, again=again)
    report(as_json, text_of(found), step=found["step"], findings=found["findings"], images=found["images"])


def _examine(settings: "TrainConfig", host: "Host", *, again: bool) -> "Record":
    """The examination of a run of the command line, with the LoRA file nearest to five epochs."""
    from ..doctor.report import read_diagnosis
    from ..runs.headless import run_folder
    from ..score.examination import examine_later

    kept = None if again else read_diagnosis(run_folder(settings).path)
    return kept or examine_later(settings, host)
