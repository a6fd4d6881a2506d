"""Commands for runs on this machine: `new` writes a first TOML file by asking, `list` says what is in a folder of runs, `card` and `push`
bring one to the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, command_host, report

if TYPE_CHECKING:
    from ..runs.run_folder import RunFolder
    from ..types import Record

HEAD = """# Settings of a LoRA. Every other option is at its default: docs/configuration.md lists them all.
# Train it:                 lora-loom train {file}
# Change one for a run:     lora-loom train {file} --set training.steps=500
"""

Run = Annotated[Path, typer.Argument(help="The folder of a run, which ComfyUI may have trained.", show_default=False)]
Checkpoints = Annotated[bool, typer.Option("--checkpoints", help="The files of the checkpoints, too.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="new")(new)
    app.command(name="list")(list_runs)
    app.command()(card)
    app.command()(push)


def new(
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("lora.toml"),
    name: Annotated[str, typer.Option(help="Name of the run and of its LoRA.")] = "",
    base: Annotated[str, typer.Option(help="The base model: a diffusers folder or a .safetensors file.")] = "",
    images: Annotated[str, typer.Option(help="Folder of the images, with a .txt of the same name for each.")] = "",
    trigger: Annotated[str | None, typer.Option(help="Word that stands for what is learnt; may be empty.")] = None,
    resolution: Annotated[
        int, typer.Option(help="Side in pixels; by default what the base model is made for.", min=0)
    ] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps; 0: by the number of images.", min=0)] = None,
) -> None:
    """Write a first TOML file, asking for what it needs.

    \b
    Examples:
      lora-loom new
      lora-loom new cat.toml --name cat --base sdxl.safetensors --images photos

    Questions whose answer is given as an option are not asked.
    """
    from ..base_model import usual_side
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
        side = resolution or typer.prompt("Resolution in pixels", default=usual_side(data["model"]["base"]), type=int)
        count = typer.prompt("Training steps (0: by the number of images)", default=0, type=int) if steps is None else steps  # fmt: skip
        data |= {"data": {"resolution": side}, "training": {"steps": count}}
        parse(data, TrainConfig)
        write_bytes(file, (HEAD.format(file=file) + "\n" + to_toml(data)).encode())
    report(False, f"{file} is written. Train with: lora-loom train {file}")


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


def card(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; by default README.md in the run's folder.")
    ] = None,
    checkpoints: Checkpoints = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a run.

    \b
    Examples:
      lora-loom card output/cat
      lora-loom card output/cat -o cat-card.md --checkpoints

    Trigger, samples, files and settings; license and base model are left to you. Nothing is sent anywhere.
    """
    from ..errors import ConfigError
    from ..runs.final_file import card_of
    from ..storage.atomic import write_bytes

    with command_host(as_json):
        folder = _run(run)
        text, files = card_of(folder, checkpoints=checkpoints)
        target = output or folder.path / "README.md"
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists: use another --output, or --overwrite")
        write_bytes(target, text.encode())
    report(as_json, f"{target}: state the license and the base model in it", card=str(target), files=sorted(files))


def push(
    run: Run,
    repo: Annotated[
        str, typer.Option("--repo", help="Repository, owner/name; by default output.hub_repo of the run.")
    ] = "",
    checkpoints: Checkpoints = False,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made for it is public.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a run to the Hugging Face hub.

    \b
    Examples:
      lora-loom push output/cat --repo me/cat
      lora-loom push output/cat --repo me/cat --checkpoints --public

    Its file, its last samples and a model card, in one commit. The token is that of HF_TOKEN or hf auth login. A card that is
    there already stays.
    """
    from dataclasses import replace

    from ..config.run import OutputConfig
    from ..config.toml import parse
    from ..errors import ConfigError
    from ..hub.push import check_repo
    from ..runs.final_file import push_run

    with command_host(as_json):
        folder = _run(run)
        asked = parse((folder.read().get("config") or {}).get("output") or {}, OutputConfig)
        name = repo or asked.hub_repo
        if not name:
            raise ConfigError("the run names no repository: --repo owner/name")
        check_repo(name, "--repo")
        private = asked.hub_private and not public
        asked = replace(asked, hub_repo=name, hub_private=private, hub_checkpoints=checkpoints or asked.hub_checkpoints)
        said = push_run(folder, asked)
    report(as_json, said, repo=name, run=str(folder.path))


def _run(path: Path) -> "RunFolder":
    """Raises RunError for a folder that is no run."""
    from ..errors import RunError
    from ..runs.run_folder import RunFolder

    folder = RunFolder(path.expanduser().resolve())
    if not folder.exists():
        raise RunError(f"{path} is not the folder of a run: it has no run.json")
    return folder
