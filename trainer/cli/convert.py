"""`lora-loom convert`: convert a LoRA file between key formats."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .common import AsJson, command_host, report
from .lora_tools import Dtype, LoraArgument, Overwrite, checked_output


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(convert)


def convert(
    file: LoraArgument,
    output: Annotated[Path, typer.Argument(help="The new .safetensors file.", show_default=False)],
    format: Annotated[
        str, typer.Option(help="Key format of the output: native (ComfyUI), diffusers or kohya.", show_default=False)
    ],
    family: Annotated[str, typer.Option(help="The base model's family; auto detects it from the keys.")] = "auto",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert a LoRA between key formats.

    \b
    Examples:
      lora-loom convert cat.safetensors cat-kohya.safetensors --format kohya

    Fused projections are split or joined without changing the result.
    """
    from ..lora_tools.convert import convert as run

    with command_host(as_json) as host:
        checked_output(output, overwrite, [file])
        done = run(file, output, format, family, dtype, lambda n, total: host.stage("converting", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))
