"""What torchrun and accelerate launch tell the processes they start, by environment variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    rank: int = 0
    """Number of this process."""
    count: int = 1
    """Number of processes that were started together."""
    local_rank: int = 0
    """Number of this process on its machine."""
    local_count: int = 1
    """Number of processes on this machine."""


def launched() -> Launch:
    """One process without a launcher."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = [os.environ.get(name, "") for name in names]
    if not all(text.isdecimal() for text in texts):
        return Launch()
    rank, count, local_rank, local_count = (int(text) for text in texts)
    return Launch(rank=rank, count=count, local_rank=local_rank, local_count=local_count)
