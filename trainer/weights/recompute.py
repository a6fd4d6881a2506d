"""Activation checkpointing that checks itself: once a run, a block's forward is compared with its recomputation.

Gradients of a recomputation that gives other values are those of another function, and nothing else would say so: blocks that
change their inputs in place, weights that were moved in between, libraries that patch a forward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ..errors import RunError

LIMIT = 0.01
"""Largest difference, relative to the norm of the values. Kernels that add in another order stay far below it, also in bfloat16."""


class Recomputation:
    """Recomputes functions in the backward pass. The first one that is called under autograd is compared with its recomputation;
    RunError is raised out of `backward` if they differ."""

    def __init__(self) -> None:
        self._is_watching = True
        self.difference: float | None = None
        """Largest relative difference that was found; None before the first backward pass."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns what the function returns."""
        if not self._is_watching or not torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        self._is_watching = False
        with set_checkpoint_early_stop(False):  # to its end, so that there is something to compare
            return checkpoint(self._watched(function), *args, use_reentrant=False, preserve_rng_state=False)

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        before: list[Tensor] = []

        def watched(*args: Any) -> Any:
            result = function(*args)
            now = [tensor.detach().clone() for tensor in _tensors(result)]
            if before:
                self._compare(before, now)
                before.clear()
            else:
                before.extend(now)
            return result

        return watched

    def _compare(self, before: list[Tensor], now: list[Tensor]) -> None:
        self.difference = max((_difference(*pair) for pair in zip(before, now, strict=True)), default=0.0)
        if not self.difference <= LIMIT:
            raise RunError(
                f"a block's recomputation differs by {self.difference:.0%} from its forward pass, so that gradients would be wrong: "
                "set memory.gradient_checkpointing = false (LoomMemory: gradient_checkpointing), and report this"
            )


def _difference(before: Tensor, now: Tensor) -> float:
    before, now = before.float(), now.float()
    return float((now - before).norm() / before.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors in the result of a block: one, or several in tuples."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, tuple | list) else []
