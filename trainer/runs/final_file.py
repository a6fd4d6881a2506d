"""The LoRA file of a run at its end: training has moved something, a host computes from it what was trained, and the best
LoRA may take its place."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config.run import OutputConfig
from ..errors import LoomError, RunError, StoppedError
from ..hub.card import model_card, shown_samples
from ..hub.push import push
from ..lora.adapter import Adapter
from ..lora.state_dict import max_relative_error
from ..storage.atomic import copy_file
from ..storage.tensor_file import TensorFile
from ..training.movement import Movement, unmoved
from ..types import Record
from .run_folder import RunFolder
from .session import Backend, Session

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Largest relative difference allowed between what a saved file does in a host and what was trained."""


def checked_error(
    backend: Backend,
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
) -> float:
    """Largest relative error of what a host computes from the file. Raises RunError above what rounding explains."""
    read = backend.layout.read(tensors) if backend.layout else tensors
    error, where = max_relative_error(adapter, backend.denoiser.file_key, read, average, backend.arithmetic)
    if not error <= AGREEMENT[dtype]:
        raise RunError(
            f"the LoRA file would act differently than it was trained: {error:.2e} in {where}; "
            "set output.dtype = 'float32' and report this"
        )
    return error


def take_best(folder: RunFolder, best: Record, publish_folder: Path | None) -> str:
    """Write the file of the best step under the run's plain name, in place of the last one; returns a line that says so."""
    folder.save_file(partial(copy_file, folder.lora_file(best["lowest"])), None, publish_folder)
    what = "model" if folder.is_whole else "LoRA"
    return f"{folder.lora_file(None).name} is the {what} of step {best['lowest']} (training.keep_best)"


def checked_movement(session: Session, values: Mapping[str, Tensor], state: str) -> str:
    """How many modules training has moved, in words, judged by the adapter's values as they are saved; also for run.json.

    Raises RunError for none, before there is a file that does nothing, and StoppedError if the run was only stopped too early.
    """
    model = session.backend.model_file
    still = unmoved(values, session.lora_dtype) if model is None else model.unmoved(values)
    movement = Movement(modules=len(session.modules), unmoved=still)
    session.folder.update(movement={"modules": movement.modules, "unmoved": movement.unmoved})
    if movement.none and state == "stopped":
        raise StoppedError(f"{movement.text()} before the stop: the checkpoint is kept, run it again to go on")
    if movement.none:
        remedy = "choose other target_modules, or raise optimizer.learning_rate"
        raise RunError(
            f"{movement.text()}, so that the {'LoRA' if model is None else 'model'} would do nothing: {remedy}"
        )
    return movement.text()


def card_of(folder: RunFolder, *, checkpoints: bool = False) -> tuple[str, dict[str, Path]]:
    """The model card of a run, and {path in a repository: file} of what belongs to it: its file, samples, and those of the checkpoints.

    Raises RunError for a run without a file.
    """
    record, last = folder.read(), folder.lora_file(None)
    saved = [one.path for one in folder.saved_files()]
    if not last.is_file() and not saved:
        raise RunError(f"run {folder.name} has no file in {folder.results} yet: train it first")
    mine = [last] if last.is_file() else saved[-1:]
    mine += [path for path in saved if checkpoints and path not in mine]
    metadata = TensorFile(mine[0]).metadata
    samples = shown_samples(list((folder.path / "samples").glob("step-*.png")), folder.path)
    losses = [line["held_out"] for line in folder.read_metrics() if "held_out" in line]
    card = model_card(record, metadata, [path.name for path in mine], samples, losses)
    pictures = {place: folder.path / place for place, _ in samples}
    return card, {**{path.name: path for path in mine}, **pictures}


def push_run(folder: RunFolder, output: OutputConfig) -> str:
    """Push a run to `output.hub_repo`; returns a line that says so. Raises RunError."""
    card, files = card_of(folder, checkpoints=output.hub_checkpoints)
    address = push(output.hub_repo, files, card, private=output.hub_private, message=f"{folder.name}, LoRA Loom")
    folder.update(hub=address)
    return f"pushed {len(files)} files to {address}"


def push_finished(folder: RunFolder, output: OutputConfig, log: Callable[[str], None]) -> None:
    """Push a run that has ended, where that is asked for. It is not lost because its files could not be pushed: that is said."""
    if not output.hub_repo:
        return
    try:
        log(push_run(folder, output))
    except LoomError as error:
        log(f"warning: {error}; then: lora-loom push {folder.path}")
