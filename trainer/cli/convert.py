"""`lora-loom convert`: a LoRA file in another layout."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, report, watched
from .lora_tools import Dtype, LoraFile, Overwrite, checked_output


def register(app: typer.Typer) -> None:
    app.command()(convert)


def convert(
    file: LoraFile,
    output: Annotated[Path, typer.Argument(help="The new .safetensors file.", show_default=False)],
    format: Annotated[str, typer.Option(help="native (ComfyUI), diffusers or kohya.", show_default=False)],
    family: Annotated[str, typer.Option(help="The base model's family; auto reads it off the names.")] = "auto",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A LoRA with the names that another program reads; fused projections are split or put together, exactly."""
    from ..lora_tools.convert import convert as run

    with watched(as_json) as host:
        checked_output(output, overwrite, [file])
        done = run(file, output, format, family, dtype, lambda n, total: host.stage("converting", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))
