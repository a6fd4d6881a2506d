"""A run on several processes: their ranks, and the few values that they exchange.

`torchrun` or `accelerate launch` starts the processes, accelerate connects them, and torch.distributed transfers the values.
The base model is frozen, so only the adapter's gradients have to be shared; everything else is the same calculation on equal
numbers in every process. Process 0 alone writes files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError, PeerError, RunError
from ..weights.devices import choose_device
from .launch import launched

T = TypeVar("T")

PEER_TIMEOUT = timedelta(days=1)
"""How long a process waits for the others. Process 0 may encode a large set of images meanwhile; a process that ended is
noticed at once, by the closed connection and by the launcher."""
CONNECTION_MARKS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class Processes(Protocol):
    """The processes of a run, from the view of one of them. All processes call every method, in the same order."""

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""
        ...

    @property
    def count(self) -> int:
        """Number of processes."""
        ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every parameter's gradient by the sum over all processes, which is bit-identical in all of them."""
        ...

    def sum(self, value: float) -> float:
        """The sum of a value over all processes."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether a flag is true in at least one process."""
        ...

    def from_main(self, ask: Callable[[], T]) -> T:
        """The result of calling `ask` in process 0 only."""
        ...

    def require_same(self, what: str, value: str) -> None:
        """Raise RunError unless the value is the same in all processes."""
        ...

    def wait(self) -> None:
        """Block until all processes have called this."""
        ...


class Alone:
    """A run on a single process."""

    rank, count = 0, 1

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        pass

    def sum(self, value: float) -> float:
        return value

    def any(self, flag: bool) -> bool:
        return flag

    def from_main(self, ask: Callable[[], T]) -> T:
        return ask()

    def require_same(self, what: str, value: str) -> None:
        pass

    def wait(self) -> None:
        pass


ALONE = Alone()


class _State(Protocol):
    """What is used of accelerate's PartialState, which has no type annotations."""

    process_index: int
    num_processes: int
    device: torch.device


class Group:
    """A run on several processes, connected by accelerate."""

    def __init__(self, state: _State) -> None:
        """`state` is accelerate's PartialState."""
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device = torch.device("cpu") if state.device.type == "cpu" else torch.device(state.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        shared = list(parameters)
        present = torch.tensor([p.grad is not None for p in shared], device=self.device, dtype=torch.float32)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
        flat = self._summed(torch.cat([*parts, present]))
        used, start = flat[-len(shared) :].tolist(), 0
        for parameter, count in zip(shared, used, strict=True):
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter).to(parameter.dtype) if count else None
            start = end

    def sum(self, value: float) -> float:
        return float(self._summed(torch.tensor(value, device=self.device, dtype=torch.float64)))

    def any(self, flag: bool) -> bool:
        return self.sum(float(flag)) > 0

    def from_main(self, ask: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        answers = [ask() if self.rank == 0 else None]
        with reporting_lost_peers():
            broadcast_object_list(answers)
        return cast(T, answers[0])

    def require_same(self, what: str, value: str) -> None:
        from accelerate.utils import gather_object

        with reporting_lost_peers():
            values = gather_object([value])
        if odd := [str(rank) for rank, other in enumerate(values) if other != values[0]]:
            raise RunError(
                f"the {what} of process {', '.join(odd)} differs from that of process 0: give all of them the same files and settings"
            )

    def wait(self) -> None:
        from accelerate import PartialState

        with reporting_lost_peers():
            PartialState().wait_for_everyone()

    def _summed(self, tensor: Tensor) -> Tensor:
        with reporting_lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor


@contextmanager
def reporting_lost_peers() -> Iterator[None]:
    """A context in which a broken connection raises PeerError."""
    try:
        yield
    except RuntimeError as error:
        kinds = (torch.distributed.DistError,) if torch.distributed.is_available() else ()
        if not isinstance(error, kinds) and not any(mark in str(error) for mark in CONNECTION_MARKS):
            raise
        raise PeerError(
            "another process of this run has ended (its own message, or the launcher's report, states the cause); no file is "
            "incomplete: fix the cause and start the same command again, it continues from the last checkpoint"
        ) from error


def check_batches(processes: Processes, per_epoch: int) -> None:
    """Raise ConfigError if several processes would train the same images in one step."""
    if processes.count > per_epoch:
        raise ConfigError(
            f"{processes.count} processes for {per_epoch} batches per epoch: start at most {per_epoch}, or lower training.batch_size, or raise dataset.repeats"
        )


@contextmanager
def main_first(processes: Processes) -> Iterator[None]:
    """A context that process 0 runs before all others, so that these find its files."""
    if processes.rank > 0:
        processes.wait()
    yield
    if processes.rank == 0:
        processes.wait()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """A context in which the processes that were started together are connected. `device` is the setting model.device.

    Raises ConfigError for a setup that cannot work.
    """
    if launched().count == 1:
        yield ALONE
        return
    _check_launch(device)
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ConfigError("several processes need the library accelerate: pip install accelerate") from error
    on_cpu = _kind(device) == "cpu"
    with reporting_lost_peers():
        state = PartialState(cpu=on_cpu, timeout=PEER_TIMEOUT, **({"backend": "gloo"} if on_cpu else {}))
    yield Group(state)
    state.destroy_process_group()  # only after success: if a process is missing, this may block for ever


def _kind(device: str) -> str:
    """The device type, found without initialising a GPU, since each process must use only its own."""
    return choose_device(device).type if device == "auto" else device.partition(":")[0]


def _check_launch(device: str) -> None:
    """Raise ConfigError for a setup that cannot work, before the processes connect."""
    launch, kind = launched(), _kind(device)
    for switch, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(switch, "").lower() == "true":
            raise ConfigError(
                f"accelerate's configuration requests {what}, which is not supported: choose plain multi-GPU there, and set memory.shard = true where the base is larger than one GPU"
            )
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{launch.count} processes on {kind}: use CUDA GPUs, or model.device = 'cpu'")
    if kind == "cuda" and ":" in device:
        raise ConfigError(
            f"model.device = {device!r} with {launch.count} processes: leave it at auto, each process takes its own GPU"
        )
    if kind == "cuda" and launch.local_count > torch.cuda.device_count():
        raise ConfigError(
            f"{launch.local_count} processes on a machine with {torch.cuda.device_count()} GPUs: start one per GPU"
        )
