"""Activation checkpointing that checks itself: once a run, a block's forward is compared with its recomputation. What blocks are
recomputed from may wait in RAM.

Gradients of a recomputation that gives other values are those of another function, and nothing else would say so: blocks that
change their inputs in place, weights that were moved in between, libraries that patch a forward.
"""

from collections.abc import Callable
from contextlib import nullcontext
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
    one in so many is recomputed. `in_ram`: inputs wait in RAM for the recomputation. `rests`: nothing is recomputed before `wake`."""

    def __init__(self, *, every: int = 1, in_ram: bool = False, rests: bool = False) -> None:
        self._every, self._in_ram = every, in_ram
        self.rests = rests
        self._numbers: dict[int, int] = {}
        self._is_watching = True
        self.difference: float | None = None
        """Largest relative difference that was found; None before the first backward pass."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Returns what the function returns."""
        if self.rests or (self._every > 1 and self._numbers.setdefault(id(function), len(self._numbers)) % self._every):
            return function(*args)
        on_shapes = any(isinstance(value, Tensor) and value.is_meta for value in args)
        with saved_tensors_hooks(_to_ram, _back) if self._in_ram else nullcontext():
            return self.function(function, *args, on_shapes=on_shapes)

    def wake(self) -> bool:
        """Recompute from now on; whether that is new. Not between a forward pass and its backward pass."""
        was_at_rest, self.rests = self.rests, False
        return was_at_rest

    def keep(self, tensor: Tensor) -> "Tensor | _InRam":
        """What waits for the recomputation in the place of an input."""
        return _to_ram(tensor) if self._in_ram else tensor

    def function(self, function: Callable[..., Any], *args: Any, on_shapes: bool) -> Any:
        """Call a function and recompute it; autograd keeps `args` for that where they are. `on_shapes`: there are no numbers to compare."""
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
                "set memory.gradient_checkpointing = false, and report this"
            )


def mark(root: nn.Module, recompute: Recomputation) -> None:
    """Have `recomputation_of` find by a network what recomputes its blocks."""
    root.__dict__["recomputation"] = recompute


def recomputation_of(module: nn.Module) -> Recomputation | None:
    """What recomputes the blocks of a network, or of one that is a part of it."""
    found = (part.__dict__.get("recomputation") for part in module.modules())
    return next((one for one in found if one is not None), None)


def _difference(before: Tensor, now: Tensor) -> float:
    before, now = before.float(), now.float()
    return float((now - before).norm() / before.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors in the result of a block, one or several in tuples; of a block run on shapes there are none to compare."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and not value.is_meta else []
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, tuple | list) else []


def recompute_forward(module: nn.Module, recompute: Recomputation) -> None:
    """Recompute this module in the backward pass whoever calls it, exact also where it changes its inputs in place. Gradients are those
    of a module that is not recomputed, bit for bit: what it shares with others sums them in the same order."""
    vars(module)["recomputed"] = module.forward  # an attribute, so that it can be compiled

    def forward(*args: Any, **kwargs: Any) -> Any:
        if recompute.rests or not torch.is_grad_enabled():
            return vars(module)["recomputed"](*args, **kwargs)
        inputs = _Inputs(args, kwargs, recompute.keep)
        on_shapes = any(isinstance(value, Tensor) and value.is_meta for value in (*args, *kwargs.values()))
        return recompute.function(lambda: inputs.call(vars(module)["recomputed"]), on_shapes=on_shapes)

    module.forward = forward


class _Inputs:
    """What a module is called with: at first the inputs themselves, so that the graph is that of a plain call, then what is kept of
    them for the recomputation. Only of an input that the module changes in place it is a copy."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Callable[[Tensor], "Tensor | _InRam"]
    ) -> None:
        self._names, self._keep = list(kwargs), keep
        self._given: list[Any] | None = [*args, *kwargs.values()]
        self._kept: list[Any] = []

    def call(self, function: Callable[..., Any]) -> Any:
        """Returns what the function returns."""
        if self._given is None:
            return self._through(function, [_restored(value) for value in self._kept])
        given, self._given = self._given, None
        before = [_before(value) for value in given]
        result = self._through(function, given)
        self._kept = [self._kept_of(*pair) for pair in zip(given, before, strict=True)]
        return result

    def _through(self, function: Callable[..., Any], values: list[Any]) -> Any:
        count = len(values) - len(self._names)
        return function(*values[:count], **dict(zip(self._names, values[count:], strict=True)))

    def _kept_of(self, value: Any, before: "_Before | None") -> Any:
        if before is None:
            return value
        is_changed = value.is_inference() or value._version != before.version
        tensor = before.copy if is_changed else value.detach()
        return _Kept(self._keep(tensor), needs_grad=before.needs_grad, is_changed=is_changed)


@dataclass(frozen=True)
class _Before:
    """An input before the call."""

    copy: Tensor
    version: int
    needs_grad: bool


@dataclass(frozen=True)
class _Kept:
    """An input after it."""

    tensor: "Tensor | _InRam"
    needs_grad: bool
    is_changed: bool


def _before(value: Any) -> _Before | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    version = 0 if value.is_inference() else value._version
    return _Before(value.detach().clone(), version, value.requires_grad)


def _restored(value: Any) -> Any:
    """The input for a recomputation, a leaf of autograd; one that is changed in place cannot be a leaf."""
    if not isinstance(value, _Kept):
        return value
    leaf = _back(value.tensor).detach().requires_grad_(value.needs_grad)
    return leaf.clone() if value.is_changed else leaf


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
