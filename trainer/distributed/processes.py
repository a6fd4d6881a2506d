"""Several processes, one run: who is who, and the few things they tell each other.

`torchrun` or `accelerate launch` starts the processes, accelerate joins them, torch.distributed carries the numbers. The
base is frozen, so that the adapter's gradients are all that has to be shared; everything else is the same calculation on
equal numbers everywhere. Process 0 alone writes files.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError, PeerError, RunError
from ..weights.devices import choose_device
from .launch import launched

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for the others. Process 0 may encode a large set of images meanwhile; a process that ended is
noticed at once, by the closed connection and by the launcher."""
CONNECTION_MARKS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


class Processes(Protocol):
    """The processes of a run as one of them sees them."""

    @property
    def rank(self) -> int:
        """Number of this process, 0 first."""
        ...

    @property
    def count(self) -> int: ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the sum over all processes; the same bits everywhere."""
        ...

    def sum(self, value: float) -> float: ...

    def any(self, flag: bool) -> bool:
        """Whether it is true in at least one process."""
        ...

    def from_main(self, ask: Callable[[], T]) -> T:
        """What process 0 answers; the others are not asked."""
        ...

    def require_same(self, what: str, value: str) -> None:
        """Raises RunError unless all processes give the same value."""
        ...

    def wait(self) -> None:
        """Until all processes have come here."""
        ...


class Alone:
    """One process."""

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


class Group:
    """Several processes, joined by accelerate. Every method is called by all of them, in the same order."""

    def __init__(self, state: Any) -> None:
        """`state` is accelerate's PartialState."""
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        self.device = torch.device("cpu") if state.device.type == "cpu" else torch.device(state.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        shared = list(parameters)
        there = torch.tensor([p.grad is not None for p in shared], device=self.device, dtype=torch.float32)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared]
        flat = self._summed(torch.cat([*parts, there]))
        used, start = flat[-len(shared) :].tolist(), 0
        for parameter, count in zip(shared, used, strict=True):
            end = start + parameter.numel()
            parameter.grad = flat[start:end].view_as(parameter) if count else None
            start = end

    def sum(self, value: float) -> float:
        return float(self._summed(torch.tensor(value, device=self.device, dtype=torch.float64)))

    def any(self, flag: bool) -> bool:
        return self.sum(float(flag)) > 0

    def from_main(self, ask: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        told: list[Any] = [ask() if self.rank == 0 else None]
        with telling_of_lost_peers():
            broadcast_object_list(told)
        return told[0]

    def require_same(self, what: str, value: str) -> None:
        from accelerate.utils import gather_object

        with telling_of_lost_peers():
            values = gather_object([value])
        if odd := [str(rank) for rank, other in enumerate(values) if other != values[0]]:
            raise RunError(
                f"the {what} of process {', '.join(odd)} differs from that of process 0: give all of them the same files and settings"
            )

    def wait(self) -> None:
        from accelerate import PartialState

        with telling_of_lost_peers():
            PartialState().wait_for_everyone()

    def _summed(self, tensor: Tensor) -> Tensor:
        with telling_of_lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor


@contextmanager
def telling_of_lost_peers() -> Iterator[None]:
    """A broken connection inside the block becomes PeerError."""
    try:
        yield
    except RuntimeError as error:
        kinds = (torch.distributed.DistError,) if torch.distributed.is_available() else ()
        if not isinstance(error, kinds) and not any(mark in str(error) for mark in CONNECTION_MARKS):
            raise
        raise PeerError(
            "another process of this run has ended (its own message, or the launcher's report, says why): nothing is "
            "half-written; mend that and start the same command again, it continues from the last checkpoint"
        ) from error


def check_batches(processes: Processes, per_epoch: int) -> None:
    """Raises ConfigError where processes would train the same images in one step."""
    if processes.count > per_epoch:
        raise ConfigError(
            f"{processes.count} processes for {per_epoch} batches per epoch: start at most {per_epoch}, or lower training.batch_size, or raise dataset.repeats"
        )


@contextmanager
def main_first(processes: Processes) -> Iterator[None]:
    """The block runs in process 0 and then in all others, which find what it left behind."""
    if processes.rank > 0:
        processes.wait()
    yield
    if processes.rank == 0:
        processes.wait()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that were started together, for the time of the block. `device` is the setting model.device.

    Raises ConfigError for a set-up that cannot work.
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
    with telling_of_lost_peers():
        state = PartialState(cpu=on_cpu, timeout=PATIENCE, **({"backend": "gloo"} if on_cpu else {}))
    yield Group(state)
    state.destroy_process_group()  # only after a good end: with a process missing it may wait for ever


def _kind(device: str) -> str:
    """cpu, cuda, …; without touching a GPU, of which each process shall use only its own."""
    return choose_device(device).type if device == "auto" else device.partition(":")[0]


def _check_launch(device: str) -> None:
    """Before the processes meet, so that a set-up that cannot work is told at once."""
    launch, kind = launched(), _kind(device)
    for switch, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(switch, "").lower() == "true":
            raise ConfigError(
                f"accelerate's configuration asks for {what}, which is not read here: choose plain multi-GPU there, and set memory.shard = true where the base is larger than one GPU"
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
