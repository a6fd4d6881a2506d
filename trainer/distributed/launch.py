"""The environment variables that torchrun and accelerate launch set in the processes they start."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The position of this process among those that were started together."""

    rank: int = 0
    """Index of this process, from 0."""
    count: int = 1
    """Number of processes that were started together."""
    local_rank: int = 0
    """Index of this process on its machine, from 0."""
    local_count: int = 1
    """Number of processes on this machine."""


def launched() -> Launch:
    """The position of this process; a single process if there is no launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name, "") for name in names]
    if not all(text.isdecimal() for text in texts):
        return Launch()
    rank, count, local_rank, local_count = (int(text) for text in texts)
    return Launch(rank=rank, count=count, local_rank=local_rank, local_count=local_count)
