"""Every random number of a run is a function of (seed, what it is for, where in the run): nothing has a state.

So a resumed run draws what the unbroken one drew, and no other thread can disturb it or be disturbed by it: torch's
global generator is never used.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Key = int | str


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """Where in a run something random is drawn: noise and noise levels of a batch, dropout masks."""

    seed: int
    step: int
    """Finished optimizer steps before this one."""
    micro_batch: int
    """Number of the forward pass within the step, over all processes."""


def derive(seed: int, *keys: Key) -> int:
    """A 63-bit number that depends on every key and on their order."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: Key, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A fresh torch generator for one purpose, e.g. `generator(seed, "noise", step, micro_batch, slot)`."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *keys))


def uniform(seed: int, *keys: Key) -> float:
    """One number in [0, 1) without torch."""
    return derive(seed, *keys) / 2**63


def permutation(count: int, seed: int, *keys: Key) -> list[int]:
    """A shuffle of range(count) without torch."""
    import random

    order = list(range(count))
    random.Random(derive(seed, *keys)).shuffle(order)
    return order
