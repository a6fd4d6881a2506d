"""The LoRA file of a run at its end: training has moved something, a host computes from it what was trained, and the best
LoRA may take its place."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import RunError, StoppedError
from ..lora.adapter import Adapter
from ..lora.state_dict import max_relative_error
from ..storage.tensor_file import open_tensors
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
    file = open_tensors(folder.lora_file(best["lowest"]))
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    folder.save_lora(tensors, dict(file.metadata() or {}), None, publish_folder)
    return f"{folder.lora_file(None).name} is the LoRA of step {best['lowest']} (training.keep_best)"


def checked_movement(session: Session, values: Mapping[str, Tensor], state: str) -> str:
    """How many modules training has moved, in words, judged by the adapter's values as they are saved; also for run.json.

    Raises RunError for none, before there is a file that does nothing, and StoppedError if the run was only stopped too early.
    """
    movement = Movement(modules=len(session.modules), unmoved=unmoved(values, session.lora_dtype))
    session.folder.update(movement={"modules": movement.modules, "unmoved": movement.unmoved})
    if movement.none and state == "stopped":
        raise StoppedError(f"{movement.text()} before the stop: the checkpoint is kept, run it again to go on")
    if movement.none:
        remedy = "choose other target_modules, or raise optimizer.learning_rate"
        raise RunError(f"{movement.text()}, so that the LoRA would do nothing: {remedy}")
    return movement.text()
