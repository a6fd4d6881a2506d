"""`lora-loom submit` and `lora-loom runs`: use a running ComfyUI server from the command line."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, LoomError, RunError, WorkflowError
from .aliases import AliasedCommand
from .common import AsJson, fail, report

if TYPE_CHECKING:
    from ..comfy_api.client import ComfyServer
    from ..comfy_api.runs import RunStatus
    from .comfy_api_console import JsonWatcher

Url = Annotated[str, typer.Option("--server", envvar="LORA_LOOM_SERVER", help="Address of ComfyUI.")]
ReconnectTimeout = Annotated[
    float, typer.Option(help="Seconds to wait for the server to come back if the connection is lost.")
]
RunName = Annotated[str, typer.Argument(help="The run's name.", show_default=False)]
DEFAULT_SERVER = "http://127.0.0.1:8188"
MAX_PROMPTS = 200
"""More prompts need --allow-many."""
CANCELLING = "removing this command's prompts from the server"
LEAVING = "no longer following; the run continues"

runs = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                   help="List and control the runs of a ComfyUI server.")  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(cls=AliasedCommand)(submit)
    app.add_typer(runs, name="runs")


@contextmanager
def connected(
    url: str, reconnect_timeout: float, as_json: bool, on_stop: str
) -> "Iterator[tuple[ComfyServer, JsonWatcher]]":
    """A connected server and what prints its progress. Errors become one line and an exit code; `on_stop` is printed on Ctrl-C."""
    from ..comfy_api.client import ComfyServer
    from .comfy_api_console import ConsoleWatcher, JsonWatcher
    from .console import StopSignal

    stop = StopSignal(on_stop)
    watcher = JsonWatcher(stop) if as_json else ConsoleWatcher(stop)
    try:
        with ComfyServer(
            url, patience_s=reconnect_timeout, told=watcher.log, should_stop=watcher.should_stop
        ) as server:
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
    settings: Annotated[list[str], typer.Option("--set", metavar="NODE.INPUT=VALUE", help="Change an input; NODE is an id, a title or a class. May be repeated.")] = [],  # noqa: B006
    sweeps: Annotated[list[str], typer.Option("--sweep", metavar="NODE.INPUT=VALUES", help="One prompt per value: names or patterns, or numbers as in 0.7-1.3 [4]. Repeat the option for a grid.")] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files that the prompts produce.")] = Path("output/submit"),
    previews: Annotated[Path | None, typer.Option(help="Folder for the sampler's previews; by default they are not kept.", show_default=False)] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Also run prompts whose files are already in the output folder.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow training runs that continue in the background, and fetch their LoRAs.")] = True,
    allow_many: Annotated[bool, typer.Option("--allow-many", help=f"Allow more than {MAX_PROMPTS} prompts.")] = False,
    server: Url = DEFAULT_SERVER,
    reconnect_timeout: ReconnectTimeout = 120.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run a workflow on a ComfyUI server, fetch its files.

    \b
    Examples:
      lora-loom submit flow.json --output images
      lora-loom submit flow.json --set 3.seed=1

    Ctrl-C removes it from the server; training runs continue.
    """
    from ..comfy_api.runs import RemoteRuns
    from ..comfy_api.submit import problems
    from ..comfy_api.submit import submit as run
    from ..comfy_api.workflow import load_workflow, plan_prompts, with_settings

    started = time.monotonic()
    try:
        graph = load_workflow(file)
    except LoomError as error:
        fail(error, as_json)
    with connected(server, reconnect_timeout, as_json, CANCELLING) as (host, watcher):
        planned = plan_prompts(with_settings(graph, settings, host.declared), sweeps, host.declared)
        if len(planned) > MAX_PROMPTS and not allow_many:
            raise ConfigError(
                f"{len(planned)} prompts are more than {MAX_PROMPTS}: add --allow-many, or sweep over fewer values"
            )
        results = run(host, planned, output, watcher, previews=previews, again=rerun)
        if errors := problems(results):
            failed = sum(bool(result.error) for result in results)
            raise WorkflowError(f"{failed} of {len(results)} prompts failed:\n{errors}" if len(results) > 1 else errors)
        started_runs = list(dict.fromkeys(name for result in results for name in result.runs))
        loras = RemoteRuns(host).collect(started_runs, watcher, output) if wait else []
    files = [*(name for result in results for name in result.files), *map(str, loras)]
    seconds = time.monotonic() - started
    text = f"{_count(len(results), 'prompt')}, {_count(len(files), 'file')} in {output}, {seconds:.1f} s"
    report(as_json, text, prompts=[asdict(result) for result in results], files=files, seconds=seconds)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@runs.callback(invoke_without_command=True)
def show(context: typer.Context, server: Url = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Training runs of a ComfyUI server: list, follow, pause, resume, stop, save, sample."""
    if context.invoked_subcommand is None:
        listing(server, as_json)
        return
    for parameter, option in (("server", "--server"), ("as_json", "--json")):
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            fail(ConfigError(f"{option} belongs behind the command: lora-loom runs {context.invoked_subcommand} {option} …"), as_json)  # fmt: skip


@runs.command("list")
def listing(server: Url = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """List all runs of the server, the newest first.

    \b
    Examples:
      lora-loom runs list
      lora-loom runs --server http://192.168.1.5:8188 list

    These are runs of ComfyUI; lora-loom list shows those in a folder.
    """
    from ..comfy_api.runs import RemoteRuns

    with connected(server, 0.0, as_json, LEAVING) as (host, _):
        known = RemoteRuns(host).all()
        if not as_json and known:
            _print_table(known)
    if as_json or not known:
        report(as_json, f"no runs on {server}", runs=known)


def _print_table(known: Sequence["RunStatus"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("run", "left"), ("state", "left"), ("step", "right"), ("of", "right"), ("loss", "right"), ("left", "right"), ("", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for run in known:
        loss = f"{run['loss']:.4f}" if run.get("loss") is not None else ""
        left = f"{seconds / 60:.0f} min" if (seconds := run.get("eta")) else ""
        table.add_row(run["name"], run["state"], str(run["step"]), str(run["total"]), loss, left, run.get("error", ""))
    Console(markup=False).print(table)


def _line(run: "RunStatus") -> str:
    return f"{run['name']}: {run['state']} at step {run['step']} of {run['total']}"


@runs.command(cls=AliasedCommand)
def follow(
    name: RunName,
    samples: Annotated[Path | None, typer.Option(help="Folder for the run's sample images.", show_default=False)] = None,
    server: Url = DEFAULT_SERVER,
    reconnect_timeout: ReconnectTimeout = 120.0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Follow a run until it ends.

    \b
    Examples:
      lora-loom runs follow cat
      lora-loom runs follow cat --samples images

    Ctrl-C stops following; the run continues.
    """
    from ..comfy_api.runs import RemoteRuns
    from ..types import ACTIVE

    with connected(server, reconnect_timeout, as_json, LEAVING) as (host, watcher):
        run = RemoteRuns(host).follow(name, watcher, samples)
        if run["state"] not in ACTIVE | {"finished"}:
            raise RunError(f"{_line(run)}{': ' if run.get('error') else ''}{run.get('error', '')}")
    report(as_json, _line(run), **run)


ACTIONS = {
    "pause": "Pause a run after its current step.",
    "resume": "Resume a paused run, or one that ended early.",
    "stop": "Save a checkpoint of a run and end it.",
    "save": "Save a checkpoint of a run now.",
    "sample": "Generate the sample images of a run now.",
}
"""{command: its help}. Each is an action of the server's runs."""


def _action(action: str) -> Callable[[str, str, bool], None]:
    """The function of the command that requests an action of a run."""

    def command(name: RunName, server: Url = DEFAULT_SERVER, as_json: AsJson = False) -> None:
        from ..comfy_api.runs import RemoteRuns

        with connected(server, 0.0, as_json, LEAVING) as (host, watcher):
            run = RemoteRuns(host).act(name, action, should_stop=watcher.should_stop)
        report(as_json, _line(run), **run)

    return command


for _name, _help in ACTIONS.items():
    runs.command(_name, help=f"{_help}\n\n\b\nExamples:\n  lora-loom runs {_name} cat")(_action(_name))
