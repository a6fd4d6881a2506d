"""Checkpoints: `checkpoints/step-000100/{adapter.safetensors, optimizer.safetensors, state.json}`, whole or absent."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import DivergedError, RunError, reading
from ..storage.atomic import TEMPORARY, stream_tensors, whole_folder, write_json
from ..storage.tensor_file import FORMATS
from ..training.loop import Training
from ..training.optim_state import pack_state, unpack_state
from ..types import Record

FORMAT = 1
_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A saved step of training on disk: its number and its folder."""

    step: int
    folder: Path


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder. Names sort in the order of the steps."""
    return f"step-{step:06d}"


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Finished checkpoints, oldest first. Half-written ones are not among them."""
    found = [(match, path) for path in folder.glob("step-*") if (match := _NAME.match(path.name)) and path.is_dir()]
    return sorted((Checkpoint(step=int(match[1]), folder=path) for match, path in found), key=lambda c: c.step)


def save_checkpoint(folder: Path, training: Training) -> Checkpoint:
    """Write the whole state of training. Raises RunError or DivergedError; an earlier checkpoint stays untouched."""
    _check_finite(training)
    target = folder / folder_name(training.step)
    if target.exists():  # the same step of the same run: the same bytes
        return Checkpoint(step=training.step, folder=target)
    tensors: dict[str, Tensor] = {}
    state = {
        "format": FORMAT,
        "step": training.step,
        "optimizer": pack_state(training.optimizer.state_dict(), "optimizer", tensors),
        "scaler": training.scaler.state_dict() if training.scaler is not None else None,
        "ema": training.average is not None,
    }
    if training.average is not None:
        tensors |= {f"ema.{name}": value.detach().cpu() for name, value in training.average.values.items()}
    parts: dict[str, Mapping[str, Tensor]] = {
        "adapter.safetensors": training.adapter.parameters(),
        "optimizer.safetensors": tensors,
    }
    digests: dict[str, str] = {}
    with whole_folder(target) as temporary:
        for name, part in parts.items():
            layout = {key: (FORMATS[tensor.dtype], tuple(tensor.shape)) for key, tensor in part.items()}
            stream_tensors(temporary / name, layout, part.__getitem__)
            with (temporary / name).open("rb") as file:
                digests[name] = _file_digest(file)
        write_json(temporary / "state.json", {**state, "sha256": {**digests, "state.json": _digest(state)}})
    return Checkpoint(step=training.step, folder=target)


def _file_digest(file: IO[bytes]) -> str:
    """The sha256 of an open file, which may be larger than memory."""
    digest = hashlib.sha256()
    while block := file.read(2**24):
        digest.update(block)
    return digest.hexdigest()


def _digest(state: Mapping[str, Any]) -> str:
    """Of everything that a state says, its digests apart."""
    said = {name: value for name, value in state.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _check_finite(training: Training) -> None:
    """A step whose loss and gradients were finite can still break the weights; such a state must not become the last one."""
    broken = [name for name, p in training.adapter.parameters().items() if not torch.isfinite(p).all()]
    if broken:
        raise DivergedError(
            f"{len(broken)} weights are not finite after step {training.step}, first {broken[0]}: the last checkpoint is kept; lower optimizer.learning_rate"
        )


def adapter_modules(checkpoint: Checkpoint) -> list[str]:
    """Paths of the modules whose adapters the checkpoint holds, sorted. Raises RunError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    path = checkpoint.folder / "adapter.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return sorted({name.partition("|")[0] for name in file.keys()})  # noqa: SIM118 - it is not a dict
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error


class DamagedCheckpointError(RunError):
    """A checkpoint's files are missing, cut or altered."""


def _damaged(checkpoint: Checkpoint, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{checkpoint.folder} is damaged ({error}): delete it to continue from the one before"
    )


def newest_intact(folder: Path, log: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint. A damaged one is set aside, under a name that ends in ".damaged", where one before it is intact.

    Raises RunError if all of them are damaged.
    """
    found = list_checkpoints(folder)
    damaged: list[Checkpoint] = []
    for checkpoint in reversed(found):
        try:
            read_checkpoint(checkpoint)
        except DamagedCheckpointError as error:
            damaged.append(checkpoint)
            if len(damaged) == len(found):
                raise
            log(str(error).partition(": delete it")[0])
            continue
        for other in damaged:
            aside = other.folder.with_name(f"{other.folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            other.folder.rename(aside)
            log(f"{other.folder.name} is set aside as {aside.name}; continuing from {checkpoint.folder.name}")
        return checkpoint
    return None


def read_checkpoint(checkpoint: Checkpoint) -> tuple[Record, dict[str, Tensor], dict[str, Tensor]]:
    """Returns (state, adapter, optimizer's tensors), compared with the digests that the state has of them; version 0.1 wrote none.

    Raises RunError if the checkpoint is damaged or of another version.
    """
    from safetensors import SafetensorError

    try:
        state = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or {"format", "step", "optimizer", "scaler"} - state.keys():
            raise ValueError("state.json lacks entries")
        digests, odd = (
            state.get("sha256", {}),
            [name for name in ("sha256", "optimizer") if not isinstance(state.get(name, {}), dict)],
        )
        if odd or state["step"] != checkpoint.step or not isinstance(state["scaler"], dict | None):
            raise ValueError(f"state.json is of another kind in {odd or 'step or scaler'}")
        if state["format"] == FORMAT and digests.get("state.json") not in (None, _digest(state)):
            raise ValueError("state.json is not what was written")
        adapter = _read(checkpoint.folder / "adapter.safetensors", digests)
        tensors = _read(checkpoint.folder / "optimizer.safetensors", digests)
        unpack_state(state["optimizer"], tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise _damaged(checkpoint, error) from error
    if state["format"] != FORMAT:
        raise RunError(
            f"{checkpoint.folder} has format {state['format']}, this version reads {FORMAT}: use the version that wrote it"
        )
    return state, adapter, tensors


def load_checkpoint(checkpoint: Checkpoint, training: Training) -> None:
    """Put the state back, bit for bit. Raises RunError if the checkpoint is damaged or of another set-up."""
    state, adapter, tensors = read_checkpoint(checkpoint)
    training.adapter.load(adapter)
    with reading(checkpoint.folder, RunError, "delete it to continue from the one before"):
        training.optimizer.load_state_dict(unpack_state(state["optimizer"], tensors))
        _load_average(training, state, tensors)
        if training.scaler is not None and state["scaler"]:
            training.scaler.load_state_dict(state["scaler"])
    training.step = state["step"]


def _load_average(training: Training, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    if training.average is None:
        return
    for name, value in training.average.values.items():
        with torch.no_grad():
            value.copy_(tensors[f"ema.{name}"])


def _read(path: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """Read into memory, so that no map of a file stays open that a later run may replace. Raises ValueError for other bytes."""
    from safetensors.torch import load

    content = path.read_bytes()
    if digests.get(path.name) not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"{path.name} is not what was written")
    return load(content)


def prune(folder: Path, keep: int, spared: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and the one of the step `spared`; 0 keeps all."""
    if keep:
        for old in (one for one in list_checkpoints(folder)[:-keep] if one.step != spared):
            doomed = old.folder.with_name(old.folder.name + TEMPORARY)  # a reader never sees it half deleted
            old.folder.rename(doomed)
            shutil.rmtree(doomed)
