"""`lora-loom doctor | caption | unpack`: commands on training images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import AsJson, ConfigOrRun, Set, command_host, load_run, report

if TYPE_CHECKING:
    from ..config.run import TrainConfig
    from ..runs.session import Host
    from ..types import Record


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(doctor)
    for command in (caption, unpack):
        app.command()(command)


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


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of images.", show_default=False)],
    program: Annotated[
        list[str], typer.Argument(help="After --, the program that captions and its arguments.", show_default=False)
    ] = [],  # noqa: B006
    python: Annotated[
        str, typer.Option(help="Instead of a program, a Python function: module:function, or file.py:function.")
    ] = "",
    extension: Annotated[str, typer.Option(help="Suffix of the caption files.")] = ".txt",
    recursive: Annotated[bool, typer.Option("--recursive", help="Also images in sub-folders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace caption files that are there.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a program has for an image ({image} only).")
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Caption images with a program of yours.

    \b
    Examples:
      lora-loom caption images/cat -- python blip.py {image}
      lora-loom caption images/cat -- python florence.py --device cuda
      lora-loom caption images/cat --python tagger.py:captions

    With {image} the program is started for each image and prints its caption. Without, it is started once, reads a line
    {"image": path} for each image and prints {"image": path, "caption": text}. A function gets the list of paths and yields
    texts. No shell is involved. Images that have a caption file are left alone.
    """
    from ..data.captioner import captions_by_function, captions_by_program, images_to_caption, write_captions
    from ..errors import ConfigError

    with command_host(as_json) as host:
        if bool(program) == bool(python):
            raise ConfigError("name one captioner: a program after --, or a function with --python")
        suffix = extension if extension.startswith(".") else f".{extension}"
        wanted, kept = images_to_caption(folder, suffix, recursive=recursive, overwrite=overwrite)
        images = list(wanted)
        said = captions_by_function(python, images) if python else captions_by_program(program, images, timeout)
        done = write_captions(wanted, said if wanted else (), lambda n, total: host.stage("captions", n, total), host.should_stop)  # fmt: skip
        done.kept = kept
    report(as_json, done.text(), written=[str(path) for path in done.written], kept=kept, empty=[str(path) for path in done.empty])  # fmt: skip


def unpack(
    source: Annotated[
        Path, typer.Argument(help="A parquet file, a folder of them, or what save_to_disk wrote.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="The new folder.", show_default=False)],
    split: Annotated[str, typer.Option(help="Which split, where there are several.")] = "",
    image_column: Annotated[str, typer.Option(help="Column of the images; by default it is found.")] = "",
    caption_column: Annotated[
        str, typer.Option(help="Column of the captions; by default text, caption, prompt …")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Write the images inside of a Hugging Face dataset to files.

    \b
    Examples:
      lora-loom unpack downloads/cats images/cats --split train
      lora-loom unpack cats.parquet images/cats --caption-column description

    Images are written byte for byte, captions as metadata.jsonl, which a dataset reads by itself. Nothing is downloaded.
    """
    from ..data.unpack import unpack as run

    with command_host(as_json) as host:
        done = run(source, folder, lambda n, total: host.stage("images", n, max(n, total)), split=split, image=image_column, caption=caption_column)  # fmt: skip
    report(as_json, done.text(), images=done.images, folder=str(folder), left_out=done.left_out)
