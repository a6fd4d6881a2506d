"""`lora-loom inspect | resize | merge | merge-base | extract`: work on LoRA files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .common import AsJson, report, watched

if TYPE_CHECKING:
    from ..base_model import Base

LoraFile = Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)]
LoraFiles = Annotated[list[Path], typer.Argument(help="LoRA files.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="The new .safetensors file.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Rank = Annotated[int, typer.Option(help="Largest rank; 0 is no limit where a method is given.")]
Method = Annotated[
    str, typer.Option(help="rank, sv_ratio, sv_fro or sv_cumulative: what decides the rank of a module.")
]
Amount = Annotated[float, typer.Option(help="For the sv_ methods, e.g. 0.9 of the norm for sv_fro.")]
Weights = Annotated[str, typer.Option(help='One number for each file, e.g. "1,0.5"; all 1 if left out.')]
Dtype = Annotated[str, typer.Option(help="Number format of the output: auto, float32, bfloat16 or float16.")]


def register(app: typer.Typer) -> None:
    for command in (inspect, resize, merge, merge_base, extract):
        app.command()(command)


def opened(base: str) -> "Base":
    """Headers only, on the CPU."""
    from ..base_model import open_base
    from ..config.run import ModelConfig

    return open_base(ModelConfig(base=base, device="cpu"))


def checked_output(path: Path, overwrite: bool, sources: list[Path], *, folder: bool = False) -> None:
    """Raises ConfigError if the output would replace something unasked, or one of its own sources."""
    if folder:
        if path.exists():
            raise ConfigError(f"output = {str(path)!r} exists: use another name for the new folder")
        return
    if path.suffix != ".safetensors":
        raise ConfigError(f"output = {str(path)!r}: end it in .safetensors")
    if any(path.resolve() == source.resolve() for source in sources):
        raise ConfigError(f"output = {str(path)!r} is one of the files that are read: use another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"output = {str(path)!r} exists: use another name, or --overwrite")


def resize(
    file: LoraFile,
    output: Output,
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA smaller by singular values, e.g. --rank 32 --method sv_fro --amount 0.9."""
    from ..lora_tools.resize import Keep
    from ..lora_tools.resize import resize as run

    with watched(as_json) as host:
        checked_output(output, overwrite, [file])
        keep = Keep(rank=rank, method=method, amount=amount)
        done = run(file, output, keep, dtype, lambda n, total: host.stage("resizing", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), kept=done.kept, **asdict(done))


def merge(
    files: LoraFiles,
    output: Output,
    weights: Weights = "",
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Several LoRAs as one: the exact weighted sum of their changes, resized afterwards if a rank or method is given."""
    from ..lora_tools.base_keys import check_one_family
    from ..lora_tools.merge import merge_loras
    from ..lora_tools.resize import Keep

    with watched(as_json) as host:
        checked_output(output, overwrite, files)
        sources = list(zip(files, weights_of(weights, len(files)), strict=True))
        check_one_family([file for file, weight in sources if weight])
        keep = Keep(rank=rank, method=method, amount=amount) if rank or amount or method != "rank" else None
        done = merge_loras(sources, output, keep, dtype, lambda n, total: host.stage("merging", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def merge_base(
    base: Annotated[str, typer.Argument(help="A base model, file or diffusers folder.", show_default=False)],
    files: LoraFiles,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New file or folder, as the base is.", show_default=False)
    ],
    weights: Weights = "",
    partly: Annotated[bool, typer.Option("--partly", help="Leave out modules that the base does not have.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A new base with LoRAs in it, written tensor by tensor and compared with the old one."""
    from ..lora_tools.with_base import merge_into_base

    with watched(as_json) as host:
        old = opened(base)
        used = files + list(old.source.denoiser_files)
        checked_output(output, overwrite, used, folder=old.source.is_diffusers)
        sources = list(zip(files, weights_of(weights, len(files)), strict=True))
        done = merge_into_base(old, sources, output, lambda n, total: host.stage("merging", n, total), partly=partly)
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def extract(
    base: Annotated[str, typer.Argument(help="The base checkpoint, a file or a diffusers folder.", show_default=False)],
    tuned: Annotated[str, typer.Argument(help="A fine-tune of it, in the same layout.", show_default=False)],
    output: Output,
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "bfloat16",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """A LoRA that takes one checkpoint to another, e.g. --rank 64, with how much of the difference it holds."""
    from ..lora_tools.resize import Keep
    from ..lora_tools.with_base import extract_lora

    with watched(as_json) as host:
        checked_output(output, overwrite, [Path(base), Path(tuned)])
        keep = Keep(rank=rank, method=method, amount=amount)
        found = opened(base), opened(tuned)
        done = extract_lora(*found, output, keep, dtype, lambda n, total: host.stage("extracting", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def inspect(
    file: LoraFile,
    base: Annotated[str, typer.Option(help="A base model whose keys the file's are looked up in.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what a LoRA file holds: family, keys ComfyUI matches, kind, ranks, norms per block, broken tensors."""
    from ..lora_tools.base_keys import recognise
    from ..lora_tools.inspect import inspect as look
    from ..lora_tools.inspect import to_text

    with watched(as_json):
        seen = look(file)
        known = recognise(file, opened(base) if base else None)
    text = to_text(seen, file).split("\n", 1)
    report(as_json, "\n".join([text[0], known.text(), *text[1:]]), **asdict(seen), matching=asdict(known))


def weights_of(text: str, count: int) -> list[float]:
    """Raises ConfigError unless there is one number for each file."""
    from ..sweep.axes import parse_numbers

    weights = parse_numbers("weights", text) if text.strip() else [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"weights = {text!r} are {len(weights)} numbers for {count} files: give one for each")
    return weights
