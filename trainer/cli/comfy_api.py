"""`lora-loom submit` and `lora-loom runs`: a running ComfyUI from the command line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, LoomError, RunError, WorkflowError
from .common import AsJson, fail, report

if TYPE_CHECKING:
    from ..comfy_api.client import ComfyServer
    from .comfy_api_console import JsonWatcher

Url = Annotated[str, typer.Option("--server", envvar="LORA_LOOM_SERVER", help="Address of ComfyUI.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a server that goes away meanwhile.")]
RunName = Annotated[str, typer.Argument(help="The run's name.", show_default=False)]
HERE = "http://127.0.0.1:8188"
MAX_UNASKED = 200
CANCELLING = "taking this command's prompts off the server; once more to leave them there"
LEAVING = "no longer following; the run goes on"

runs = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                   help="Runs of a ComfyUI server: list, follow, pause, resume, stop, save, sample.")  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command()(submit)
    app.add_typer(runs, name="runs")


@contextmanager
def connected(url: str, patience: float, as_json: bool, on_stop: str) -> "Iterator[tuple[ComfyServer, JsonWatcher]]":
    """A server that was found, and whoever watches. Problems become one plain line and an exit code."""
    from ..comfy_api.client import ComfyServer
    from .comfy_api_console import ConsoleWatcher, JsonWatcher
    from .console import StopSignal

    stop = StopSignal(on_stop)
    watcher = JsonWatcher(stop) if as_json else ConsoleWatcher(stop)
    try:
        with ComfyServer(url, patience_s=patience, told=watcher.log, should_stop=watcher.should_stop) as server:
            server.find()
            if isinstance(watcher, ConsoleWatcher):
                with watcher:
                    yield server, watcher
            else:
                yield server, watcher
    except LoomError as error:
        fail(error, as_json)
    finally:
        stop.restore()


def submit(  # noqa: PLR0913, PLR0917 - every option is a parameter
    file: Annotated[Path, typer.Argument(help="A workflow in API format.", show_default=False)],
    settings: Annotated[list[str], typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Change an input; NODE is an id, a title or a class. Repeat it.")] = [],  # noqa: B006
    sweeps: Annotated[list[str], typer.Option("--sweep", metavar="NODE.INPUT=VALUES", help="One prompt per value: names or patterns, or numbers as in 0.7-1.3 [4]. Repeat it for a grid.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what the prompts make.")] = Path("output/submit"),
    previews: Annotated[Path | None, typer.Option(help="Folder for the sampler's previews; left out, none are kept.", show_default=False)] = None,
    again: Annotated[bool, typer.Option("--again", help="Also run prompts whose files are in the output folder.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow training runs that go on in the background, and fetch their LoRAs.")] = True,
    many: Annotated[bool, typer.Option("--many", help=f"Allow more than {MAX_UNASKED} prompts.")] = False,
    server: Url = HERE,
    patience: Patience = 120.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a workflow on a running ComfyUI and fetch what it makes. Ctrl-C takes it off the server; a training run goes on."""
    from ..comfy_api.runs import RemoteRuns
    from ..comfy_api.submit import problems
    from ..comfy_api.submit import submit as run
    from ..comfy_api.workflow import load_workflow, plan_prompts, with_settings

    started = time.monotonic()
    try:
        graph = load_workflow(file)
    except LoomError as error:
        fail(error, as_json)
    with connected(server, patience, as_json, CANCELLING) as (host, watcher):
        planned = plan_prompts(with_settings(graph, settings, host.declared), sweeps, host.declared)
        if len(planned) > MAX_UNASKED and not many:
            raise ConfigError(f"{len(planned)} prompts: give --many if you mean it, or sweep over fewer values")
        results = run(host, planned, output, watcher, previews=previews, again=again)
        if told := problems(results):
            failed = sum(bool(result.error) for result in results)
            raise WorkflowError(f"{failed} of {len(results)} prompts failed:\n{told}" if len(results) > 1 else told)
        started_runs = list(dict.fromkeys(name for result in results for name in result.runs))
        loras = RemoteRuns(host).collect(started_runs, watcher, output) if wait else []
    files = [*(name for result in results for name in result.files), *map(str, loras)]
    seconds = time.monotonic() - started
    text = f"{_count(len(results), 'prompt')}, {_count(len(files), 'file')} in {output}, {seconds:.1f} s"
    report(as_json, text, prompts=[asdict(result) for result in results], files=files, seconds=seconds)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@runs.callback(invoke_without_command=True)
def show(context: typer.Context, server: Url = HERE, as_json: AsJson = False) -> None:
    """Runs of a ComfyUI server: list, follow, pause, resume, stop, save, sample."""
    if context.invoked_subcommand is None:
        listing(server, as_json)
        return
    for parameter, option in (("server", "--server"), ("as_json", "--json")):
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            fail(ConfigError(f"{option} belongs behind the command: lora-loom runs {context.invoked_subcommand} {option} …"), as_json)  # fmt: skip


@runs.command("list")
def listing(server: Url = HERE, as_json: AsJson = False) -> None:
    """All runs of the server, the newest first."""
    from ..comfy_api.runs import RemoteRuns

    with connected(server, 0.0, as_json, LEAVING) as (host, _):
        found = RemoteRuns(host).all()
        if not as_json and found:
            _print_table(found)
    report(as_json, "" if found else f"no runs on {server}", runs=found) if as_json or not found else None


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("run", "left"), ("state", "left"), ("step", "right"), ("of", "right"), ("loss", "right"), ("left", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for run in found:
        loss = f"{run['loss']:.4f}" if run.get("loss") is not None else ""
        left = f"{run['eta'] / 60:.0f} min" if run.get("eta") else ""
        table.add_row(run["name"], run["state"], str(run["step"]), str(run["total"]), loss, left, run.get("error", ""))
    Console(markup=False).print(table)


def _line(run: dict[str, Any]) -> str:
    return f"{run['name']}: {run['state']} at step {run['step']} of {run['total']}"


@runs.command()
def follow(
    name: RunName,
    samples: Annotated[Path | None, typer.Option(help="Folder for the run's sample pictures.", show_default=False)] = None,
    server: Url = HERE,
    patience: Patience = 120.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Watch a run until it ends. Ctrl-C stops watching, not the run."""
    from ..comfy_api.runs import RemoteRuns
    from ..types import ACTIVE

    with connected(server, patience, as_json, LEAVING) as (host, watcher):
        run = RemoteRuns(host).follow(name, watcher, samples)
        if run["state"] not in ACTIVE | {"finished"}:
            raise RunError(f"{_line(run)}{': ' if run.get('error') else ''}{run.get('error', '')}")
    report(as_json, _line(run), **run)


def _act(action: str, name: str, server: str, as_json: bool) -> None:
    from ..comfy_api.runs import RemoteRuns

    with connected(server, 0.0, as_json, LEAVING) as (host, watcher):
        run = RemoteRuns(host).act(name, action, should_stop=watcher.should_stop)
    report(as_json, _line(run), **run)


@runs.command()
def pause(name: RunName, server: Url = HERE, as_json: AsJson = False) -> None:
    """Hold a run after its current step."""
    _act("pause", name, server, as_json)


@runs.command()
def resume(name: RunName, server: Url = HERE, as_json: AsJson = False) -> None:
    """Let a paused run go on, or queue the graph of one that has ended before its last step."""
    _act("resume", name, server, as_json)


@runs.command()
def stop(name: RunName, server: Url = HERE, as_json: AsJson = False) -> None:
    """Save a run and end it."""
    _act("stop", name, server, as_json)


@runs.command()
def save(name: RunName, server: Url = HERE, as_json: AsJson = False) -> None:
    """Have a run write a checkpoint now."""
    _act("save", name, server, as_json)


@runs.command()
def sample(name: RunName, server: Url = HERE, as_json: AsJson = False) -> None:
    """Have a run render its validation prompts now."""
    _act("sample", name, server, as_json)
