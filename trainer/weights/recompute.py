"""Activation checkpointing that checks itself: once a run, a block's forward is compared with its recomputation. What blocks are
recomputed from may wait in RAM.

Gradients of a recomputation that gives other values are those of another function, and nothing else would say so: blocks that
change their inputs in place, weights that were moved in between, libraries that patch a forward.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ..errors import RunError

LIMIT = 0.01
"""Largest difference, relative to the norm of the values. Kernels that add in another order stay far below it, also in bfloat16."""


LEAST_IN_RAM = 1 << 20
"""Bytes from which on an input goes to RAM: smaller ones are not worth the way."""


class Recomputation:
    """Recomputes functions in the backward pass. The first one that is called under autograd is compared with its recomputation;
    RunError is raised out of `backward` if they differ. `every`: of the modules that are called, in the order of their first call,
    one in so many is recomputed. `in_ram`: inputs wait in RAM for the recomputation."""

    def __init__(self, *, every: int = 1, in_ram: bool = False) -> None:
        self._every, self._in_ram = every, in_ram
        self._numbers: dict[int, int] = {}
        self._is_watching = True
        self.difference: float | None = None
        """Largest relative difference that was found; None before the first backward pass."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns what the function returns."""
        if self._every > 1 and self._numbers.setdefault(id(function), len(self._numbers)) % self._every:
            return function(*args)
        with self._keeping():
            return self._checkpointed(function, *args)

    def _keeping(self) -> AbstractContextManager[object]:
        return saved_tensors_hooks(_to_ram, _back) if self._in_ram else nullcontext()

    def _checkpointed(self, function: Callable[..., Any], *args: Any) -> Any:
        on_shapes = any(isinstance(value, Tensor) and value.is_meta for value in args)
        if not self._is_watching or not torch.is_grad_enabled() or on_shapes:
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
    """The floating-point tensors in the result of a block, one or several in tuples; of a block run on shapes there are none to compare."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and not value.is_meta else []
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, tuple | list) else []


def recompute_forward(module: nn.Module, recompute: Recomputation) -> None:
    """Recompute this module in the backward pass whoever calls it, exact also where it changes its inputs in place."""
    vars(module)["recomputed"] = module.forward  # an attribute, so that it can be compiled

    def forward(*args: object, **kwargs: object) -> object:
        def block(*args: object) -> object:
            # Copies, so that additions in place inside the block leave the inputs as the recomputation must find them.
            return vars(module)["recomputed"](
                *[_own(a) for a in args], **{name: _own(value) for name, value in kwargs.items()}
            )

        return recompute(block, *args)

    module.forward = forward


def _own(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


@dataclass(frozen=True)
class _InRam:
    """A tensor of a device that waits in RAM; of a shape only that."""

    kept: Tensor | None
    like: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _to_ram(tensor: Tensor) -> "Tensor | _InRam":
    """The copy is ordered by the stream that computes, so what is copied may be freed at once."""
    if tensor.numel() * tensor.element_size() < LEAST_IN_RAM:
        return tensor
    kept = None
    if not tensor.is_meta:
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        kept.copy_(tensor, non_blocking=True)
    return _InRam(kept, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _back(packed: "Tensor | _InRam") -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    if packed.kept is None:
        return torch.empty_strided(packed.like, packed.stride, dtype=packed.dtype, device=packed.device)
    return packed.kept.to(packed.device, non_blocking=True)
