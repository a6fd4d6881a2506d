"""`lora-loom inspect | resize | merge | merge-base | extract`: commands on LoRA files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .aliases import AliasedCommand
from .common import AsJson, command_host, report

if TYPE_CHECKING:
    from ..base_model import Base

LoraArgument = Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)]
LoraArguments = Annotated[list[Path], typer.Argument(help="LoRA files.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="The new .safetensors file.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")]
Rank = Annotated[int, typer.Option(help="Largest rank; 0 means no limit, which needs another --method.")]
Method = Annotated[
    str, typer.Option(help="What decides the rank of each module: rank, sv_ratio, sv_fro or sv_cumulative.")
]
Amount = Annotated[float, typer.Option(help="Parameter of the sv_ methods, e.g. 0.9 of the norm for sv_fro.")]
Weights = Annotated[str, typer.Option(help='One weight for each file, e.g. "1,0.5"; by default 1 for all.')]
Dtype = Annotated[str, typer.Option(help="Dtype of the output: auto, float32, bfloat16 or float16.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (inspect, resize, merge, merge_base, extract):
        app.command(cls=AliasedCommand)(command)


def opened(base: str) -> "Base":
    """The base model in a file or folder, of which only headers are read. Raises ModelFileError."""
    from ..base_model import open_base
    from ..config.run import ModelConfig

    return open_base(ModelConfig(base=base, device="cpu"))


def checked_output(path: Path, overwrite: bool, sources: list[Path], *, folder: bool = False) -> None:
    """Raise ConfigError if the output exists and may not be replaced, is one of the `sources`, or has the wrong extension."""
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
    file: LoraArgument,
    output: Output,
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Reduce the rank of a LoRA by SVD.

    \b
    Examples:
      lora-loom resize cat.safetensors -o small.safetensors --rank 8
      lora-loom resize a.safetensors -o b.safetensors --method sv_fro --amount 0.9

    Methods choose a rank for each module; --rank is then the largest.
    """
    from ..lora_tools.resize import Keep
    from ..lora_tools.resize import resize as run

    with command_host(as_json) as host:
        checked_output(output, overwrite, [file])
        keep = Keep(rank=rank, method=method, amount=amount)
        done = run(file, output, keep, dtype, lambda n, total: host.stage("resizing", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), kept=done.kept, **asdict(done))


def merge(
    files: LoraArguments,
    output: Output,
    weights: Weights = "",
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge LoRAs into one.

    \b
    Examples:
      lora-loom merge cat.safetensors ink.safetensors -o both.safetensors
      lora-loom merge a.safetensors b.safetensors -o c.safetensors --weights 1,0.5

    It is the exact weighted sum of their changes, then reduced if a rank or method is given.
    """
    from ..lora_tools.base_keys import check_one_family
    from ..lora_tools.merge import merge_loras
    from ..lora_tools.resize import Keep

    with command_host(as_json) as host:
        checked_output(output, overwrite, files)
        sources = list(zip(files, weights_of(weights, len(files)), strict=True))
        check_one_family([file for file, weight in sources if weight])
        keep = Keep(rank=rank, method=method, amount=amount) if rank or amount or method != "rank" else None
        done = merge_loras(sources, output, keep, dtype, lambda n, total: host.stage("merging", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def merge_base(
    base: Annotated[str, typer.Argument(help="A base model, file or diffusers folder.", show_default=False)],
    files: LoraArguments,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="New file or folder, in the base model's layout.", show_default=False)
    ],
    weights: Weights = "",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out modules of the LoRAs that the base model does not have.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge LoRAs into a checkpoint of the base model.

    \b
    Examples:
      lora-loom merge-base sdxl.safetensors cat.safetensors -o merged.safetensors

    It is written tensor by tensor and then verified against the original.
    """
    from ..lora_tools.with_base import merge_into_base

    with command_host(as_json) as host:
        old = opened(base)
        used = files + list(old.source.denoiser_files)
        checked_output(output, overwrite, used, folder=old.source.is_diffusers)
        sources = list(zip(files, weights_of(weights, len(files)), strict=True))
        done = merge_into_base(
            old, sources, output, lambda n, total: host.stage("merging", n, total), partly=skip_missing
        )
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def extract(
    base: Annotated[str, typer.Argument(help="The base model, a file or a diffusers folder.", show_default=False)],
    tuned: Annotated[
        str, typer.Argument(help="A fine-tuned checkpoint of it, in the same layout.", show_default=False)
    ],
    output: Output,
    rank: Rank = 0,
    method: Method = "rank",
    amount: Amount = 0.0,
    dtype: Dtype = "bfloat16",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Extract a LoRA from the difference of two checkpoints.

    \b
    Examples:
      lora-loom extract sdxl.safetensors tuned.safetensors -o diff.safetensors

    The report says how much of the difference it holds.
    """
    from ..lora_tools.resize import Keep
    from ..lora_tools.with_base import extract_lora

    with command_host(as_json) as host:
        checked_output(output, overwrite, [Path(base), Path(tuned)])
        keep = Keep(rank=rank, method=method, amount=amount)
        models = opened(base), opened(tuned)
        done = extract_lora(*models, output, keep, dtype, lambda n, total: host.stage("extracting", n, total))
    report(as_json, f"{done.text()}\n{output}", output=str(output), **asdict(done))


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or a base model.", show_default=False)],
    base: Annotated[str, typer.Option(help="A base model to compare the file's keys with.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print what a LoRA file holds, or which layers a base model has.

    \b
    Examples:
      lora-loom inspect cat.safetensors
      lora-loom inspect cat.safetensors --base sdxl.safetensors
      lora-loom inspect sdxl.safetensors

    Of a LoRA: family, keys that ComfyUI matches, LoRA type, ranks, norms per block, broken tensors. Of a base model:
    the names of its layers, as network.target_modules takes them, with their presets.
    """
    if not base and (model := _base_in(file)) is not None:
        _inspect_base(file, model, as_json)
        return
    from ..lora_tools.base_keys import recognise
    from ..lora_tools.inspect import inspect as examine
    from ..lora_tools.inspect import to_text

    with command_host(as_json):
        contents = examine(file)
        match = recognise(file, opened(base) if base else None)
    heading, *rest = to_text(contents, file).split("\n", 1)
    report(as_json, "\n".join([heading, match.text(), *rest]), **asdict(contents), matching=asdict(match))


def _base_in(path: Path) -> "Base | None":
    """The base model in a file or folder; None for a LoRA, or what no family knows."""
    from ..errors import LoomError
    from ..lora_tools.inspect import modules_of
    from ..storage.tensor_file import TensorFile

    try:
        is_lora = path.is_file() and bool(modules_of(TensorFile(path))[0])
        return None if is_lora or not path.exists() else opened(str(path))
    except LoomError:
        return None


def _inspect_base(path: Path, base: "Base", as_json: bool) -> None:
    from ..lora_tools.base_layers import layers_table, listed_layers

    with command_host(as_json):
        denoiser = base.skeleton()
        layers = listed_layers(denoiser.module, denoiser.target_presets)
    title = f"{path.name}: {base.family.name} {base.variant}"
    text = layers_table(title, layers, denoiser.target_presets)
    report(as_json, text, family=base.family.name, variant=base.variant, layers=[asdict(one) for one in layers])


def weights_of(text: str, count: int) -> list[float]:
    """The numbers in `--weights`; all 1 if it is empty. Raises ConfigError unless there is one for each file."""
    from ..sweep.axes import parse_numbers

    weights = parse_numbers("weights", text) if text.strip() else [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"weights = {text!r} are {len(weights)} numbers for {count} files: give one for each file")
    return weights
