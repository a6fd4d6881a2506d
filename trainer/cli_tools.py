"""`lora-loom resize | merge | extract`: work on LoRA files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_common import AsJson, report, watched
from .errors import ConfigError

if TYPE_CHECKING:
    from .lora.resize import Keep

Output = Annotated[Path, typer.Option("--output", "-o", help="The new .safetensors file.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Rank = Annotated[int, typer.Option(help="Largest rank; 0 is no limit where a method is given.")]
Method = Annotated[
    str, typer.Option(help="rank, sv_ratio, sv_fro or sv_cumulative: what decides the rank of a module.")
]
Amount = Annotated[float, typer.Option(help="For the sv_ methods, e.g. 0.9 of the norm for sv_fro.")]
Dtype = Annotated[str, typer.Option(help="Number format of the output: auto, float32, bfloat16 or float16.")]


def register(app: typer.Typer) -> None:
    for command in (resize, merge):
        app.command()(command)


def checked_output(path: Path, overwrite: bool, sources: list[Path]) -> None:
    """Raises ConfigError if the output would replace something unasked, or one of its own sources."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"output = {str(path)!r}: end it in .safetensors")
    if any(path.resolve() == source.resolve() for source in sources):
        raise ConfigError(f"output = {str(path)!r} is one of the files that are read: use another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"output = {str(path)!r} exists: use another name, or --overwrite")


def keep_of(rank: int, method: str, amount: float) -> "Keep":
    """A method is meant wherever an amount is given."""
    from .lora.resize import Keep

    if amount and method == "rank":
        raise ConfigError(f"amount = {amount} needs a --method: sv_fro, sv_ratio or sv_cumulative")
    return Keep(rank=rank, method=method, amount=amount)


def resize(
    file: Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)],
    output: Output,
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA smaller by singular values, e.g. --rank 32 --method sv_fro --amount 0.9."""
    from .lora.resize import resize as run

    with watched(as_json) as host:
        checked_output(output, overwrite, [file])
        keep = keep_of(rank, method, amount)
        done = run(file, output, keep, dtype, lambda n, total: host.stage("resizing", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), kept=done.kept, **asdict(done))


def merge(
    files: Annotated[list[Path], typer.Argument(help="LoRA files.", show_default=False)],
    output: Output,
    weights: Annotated[str, typer.Option(help='One number for each file, e.g. "1,0.5"; all 1 if left out.')] = "",
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Several LoRAs as one: the exact weighted sum of their changes, resized afterwards if a rank or method is given."""
    from .lora.merge import merge_loras

    with watched(as_json) as host:
        checked_output(output, overwrite, files)
        sources = list(zip(files, weights_of(weights, len(files)), strict=True))
        keep = keep_of(rank, method, amount) if rank or amount or method != "rank" else None
        done = merge_loras(sources, output, keep, dtype, lambda n, total: host.stage("merging", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def weights_of(text: str, count: int) -> list[float]:
    """Raises ConfigError unless there is one number for each file."""
    from .axes import parse_numbers

    weights = parse_numbers("weights", text) if text.strip() else [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"weights = {text!r} are {len(weights)} numbers for {count} files: give one for each")
    return weights
