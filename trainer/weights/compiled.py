"""Blocks of a network compiled one by one (torch.compile), for any shape, so that equal blocks are compiled once.

What is recomputed in the backward pass stays outside: the compiled block is what is recomputed. A block that cannot be compiled
computes as before, and so do all others from then on.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

BACKEND = "inductor"
FORWARDS = ("recomputed", "forward")
"""Attributes that hold what a block computes: the first where it is recomputed by whoever calls it (`weights/recompute.py`)."""


class CompiledBlocks:
    """The blocks at these paths of a network, compiled until `give_up`. Nothing is compiled before a block is called."""

    def __init__(self, module: nn.Module, paths: Collection[str], backend: str = BACKEND) -> None:
        self.is_on = True
        self.reason = ""
        """Why it was given up."""
        self.blocks = len(paths)
        for path in paths:
            block = module.get_submodule(path)
            name = next(one for one in FORWARDS if one in vars(block) or one == FORWARDS[-1])
            plain = getattr(block, name)
            setattr(block, name, self._guarded(plain, torch.compile(plain, dynamic=True, backend=backend)))

    def _guarded(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.is_on:
                try:
                    return compiled(*args, **kwargs)
                except _failures() as error:
                    self.give_up(error)
            return plain(*args, **kwargs)

        return forward

    def give_up(self, error: BaseException | str) -> None:
        """Compute as if nothing had been compiled."""
        self.is_on = False
        self.reason = error if isinstance(error, str) else _in_a_line(error)


def _failures() -> type[Exception]:
    """What the compiler raises, not what the block does."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]
