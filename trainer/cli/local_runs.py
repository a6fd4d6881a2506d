"""Commands for runs on this machine: `new` writes a first TOML file by asking, `list` says what is in a folder of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, command_host, report

if TYPE_CHECKING:
    from ..types import Record

HEAD = """# Settings of a LoRA. Every other option is at its default: docs/configuration.md lists them all.
# Train it:                 lora-loom train {file}
# Change one for a run:     lora-loom train {file} --set training.steps=500
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="new")(new)
    app.command(name="list")(list_runs)


def new(
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("lora.toml"),
    name: Annotated[str, typer.Option(help="Name of the run and of its LoRA.")] = "",
    base: Annotated[str, typer.Option(help="The base model: a diffusers folder or a .safetensors file.")] = "",
    images: Annotated[str, typer.Option(help="Folder of the images, with a .txt of the same name for each.")] = "",
    trigger: Annotated[str | None, typer.Option(help="Word that stands for what is learnt; may be empty.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps.", min=0)] = 0,
) -> None:
    """Write a first TOML file, asking for what it needs.

    \b
    Examples:
      lora-loom new
      lora-loom new cat.toml --name cat --base sdxl.safetensors --images photos

    Questions whose answer is given as an option are not asked.
    """
    from ..config.run import TrainConfig
    from ..config.toml import parse
    from ..config.toml_text import to_toml
    from ..errors import ConfigError
    from ..storage.atomic import write_bytes

    with command_host(False):
        if file.exists():
            raise ConfigError(f"{file} exists: name another file, e.g. lora-loom new {file.stem}-2.toml")
        data: Record = {
            "name": name or typer.prompt("Name of the LoRA", default=file.stem),
            "model": {"base": str(_existing(base, "Base model (a diffusers folder or a .safetensors file)"))},
            "dataset": [{"folder": str(_existing(images, "Folder of the images"))}],
        }
        word = typer.prompt("Trigger word (Enter for none)", default="", show_default=False) if trigger is None else trigger  # fmt: skip
        if word.strip():
            data["dataset"][0]["trigger"] = word.strip()
        data["training"] = {"steps": steps or typer.prompt("Training steps", default=_usual_steps(), type=int)}
        parse(data, TrainConfig)
        write_bytes(file, (HEAD.format(file=file) + "\n" + to_toml(data)).encode())
    report(False, f"{file} is written. Train with: lora-loom train {file}")


def _usual_steps() -> int:
    from ..config.run import TrainingConfig

    return TrainingConfig().steps


def _existing(text: str, question: str) -> Path:
    """The path, asked for until there is one. Raises ConfigError for an option that names none."""
    from ..errors import ConfigError

    if text:
        path = Path(text).expanduser()
        if not path.exists():
            raise ConfigError(f"{path} does not exist: name an existing file or folder")
        return path
    while True:
        path = Path(typer.prompt(question).strip().strip("'\"")).expanduser()
        if path.exists():
            return path
        typer.echo(f"{path} does not exist.")


def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder of runs, output.directory of a TOML file.")] = Path(
        "output"
    ),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, the newest first.

    \b
    Examples:
      lora-loom list
      lora-loom list ~/ComfyUI/output/lora_loom

    These are runs on this machine; lora-loom runs list asks a server of ComfyUI.
    """
    from ..errors import RunError

    with command_host(as_json):
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder: name the folder of runs (output.directory of a TOML file)")
        runs = sorted(_records(folder), key=lambda run: -run["updated"])
    lines = [_line(run) for run in runs] or [f"no run in {folder}"]
    report(as_json, "\n".join(lines), runs=runs)


def _records(folder: Path) -> "list[Record]":
    from ..errors import RunError
    from ..runs.run_folder import RunFolder

    found: list[Record] = []
    for path in folder.iterdir():
        run = RunFolder(path)
        if not run.exists():
            continue
        try:
            record = run.read()
        except RunError as error:
            found.append(
                {"name": run.name, "state": "damaged", "step": 0, "total": 0, "updated": 0, "error": str(error)}
            )
            continue
        total = (record.get("config", {}).get("training") or {}).get("steps", 0)
        kept = {name: record.get(name) for name in ("state", "error", "lora")}
        found.append({"name": run.name, **kept, "step": record.get("step", 0), "total": total, "updated": record.get("updated", 0)})  # fmt: skip
    return found


def _line(run: "Record") -> str:
    import time

    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["updated"])) if run["updated"] else "-"
    return f"{when:16}  {run['state'] or '-':11}  {run['step']:>6}/{run['total']:<6}  {run['name']}"
