"""memory.compile: the blocks of a run's network are compiled if a first micro-batch shows that they then compute the same."""

from collections.abc import Sequence

import torch

from ...errors import LoomError
from ...training.loop import Training
from ...weights.compiled import BACKEND, CompiledBlocks
from ...weights.devices import out_of_memory
from ...weights.streaming import stream_of
from ..session import Host, Session
from .first_gradients import difference, first_gradients

LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of the gradients of a micro-batch to those of the plain network, relative to their norm."""


def compile_blocks(
    session: Session, training: Training, paths: Sequence[str], host: Host, backend: str = BACKEND
) -> CompiledBlocks | None:
    """Compile the blocks at `paths` of the run's network, and try them; None where they are left as they are, which the log says.

    run.json keeps whether the run is compiled: one that began without stays so.
    """
    folder, processes = session.folder, session.processes
    before = processes.from_main(lambda: folder.read().get("compiled"))
    reason = _unfit(session, paths) or ("this run began without" if before is False else "")
    compiled = None
    if not reason:
        host.log(f"compiling {len(paths)} blocks: the first steps take minutes")
        compiled, reason = _tried(session, training, paths, backend)
    if processes.any(bool(reason)) and compiled is not None:
        compiled.give_up(reason)
        compiled, reason = None, reason or "it failed in another process"
    if reason:
        host.log(f"memory.compile is off: {reason}")
        if before:
            host.log("this run was compiled until now: it goes on with rounding of another kind, not bit-identical")
    else:
        host.log(f"compiled {len(paths)} blocks")
    folder.update(compiled=not reason)
    return compiled


def _unfit(session: Session, paths: Sequence[str]) -> str:
    """Why the network is not compiled; "" for nothing."""
    stream = stream_of(session.denoiser.module)
    if stream is not None and stream.ring is not None:
        return "the base does not fit the device and is streamed"
    return "" if paths else "the network has no repeated blocks"


def _tried(
    session: Session, training: Training, paths: Sequence[str], backend: str
) -> tuple[CompiledBlocks | None, str]:
    """The compiled blocks, and why they cannot be used; "" where they can."""
    plain = first_gradients(session, training)
    try:
        compiled = CompiledBlocks(session.denoiser.module, paths, backend)
    except RuntimeError as error:  # no torch.compile for this Python or this system
        return None, f"{type(error).__name__}: {error}"
    try:
        apart = difference(plain, first_gradients(session, training))
    except LoomError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        compiled.give_up(error)
        return compiled, compiled.reason
    if not compiled.is_on:
        return compiled, compiled.reason
    limit = LIMIT[session.backend.compute_dtype]
    return compiled, "" if apart <= limit else f"gradients differ by {apart:.1e}, and may by {limit:g}"
