"""Random numbers without state: every one is a function of (seed, purpose, position in the run).

A resumed run therefore draws the same numbers as an uninterrupted one. torch's global generator is never used, so no
other thread can change the sequence of a run or have its own changed.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Key = int | str
"""A part of the purpose or position of a random number."""


@dataclass(frozen=True, kw_only=True)
class StepKey:
    """The position in a run at which noise, timesteps or dropout masks are drawn."""

    seed: int
    step: int
    """Number of optimizer steps finished before this one."""
    micro_batch: int
    """Index of the forward pass within the step, counted over all processes."""


def derive(seed: int, *keys: Key) -> int:
    """A 63-bit number that depends on the seed, on every key, on the keys' types and on their order (BLAKE2b)."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *keys: Key, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A new torch generator for one purpose, e.g. `generator(seed, "noise", step, micro_batch, slot)`."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *keys))


def uniform(seed: int, *keys: Key) -> float:
    """One number in [0, 1), made without torch."""
    return derive(seed, *keys) / 2**63


def permutation(count: int, seed: int, *keys: Key) -> list[int]:
    """A shuffled list of range(count), made without torch."""
    import random

    order = list(range(count))
    random.Random(derive(seed, *keys)).shuffle(order)
    return order
