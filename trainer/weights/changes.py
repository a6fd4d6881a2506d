"""Frozen changes of a layer's weight that are computed next to it: the weight is not touched, and none of it is stored twice.

A layer that has some computes W x + dW x. A change can be switched off for a while; the layer then computes what it did
before, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenChange(Protocol):
    """The change dW of a weight, at the strength that it is used with."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes."""
        ...

    def add_to(self, out: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        """Returns `out` + dW x, where `out` is the output of `layer` for `x`."""
        ...

    def dense(self) -> Tensor:
        """The change as a matrix or kernel, fp32."""
        ...

    def rows(self, first: int, last: int) -> "FrozenChange":
        """The change of the rows first to last - 1 alone."""
        ...

    def to(self, device: torch.device) -> "FrozenChange":
        """The same change with its tensors on a device."""
        ...

    def tensors(self) -> Iterable[Tensor]:
        """What it is computed from."""
        ...


class Switch:
    """Whether the changes that share it are computed."""

    def __init__(self) -> None:
        self.is_on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which they are not."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before


@dataclass(frozen=True)
class _Laid:
    """In a plain object, so that torch takes the tensors of a change for no parameters of the layer."""

    change: FrozenChange
    switch: Switch


def lay(layer: nn.Module, change: FrozenChange, switch: Switch) -> None:
    """Have a frozen Linear or Conv2d compute with a change, on top of those it has."""
    laid: Sequence[_Laid] = vars(layer).get("laid_changes", ())
    layer.laid_changes = (*laid, _Laid(change, switch))  # type: ignore[assignment]
    layer.forward = partial(_forward, layer)


def take_off(layer: nn.Module, switch: Switch) -> None:
    """Take the changes with this switch off a layer; one without any is as it was before the first."""
    laid: Sequence[_Laid] = vars(layer).get("laid_changes", ())
    kept = tuple(one for one in laid if one.switch is not switch)
    if len(kept) == len(laid):
        return
    layer.laid_changes = kept  # type: ignore[assignment]
    if not kept:
        del layer.laid_changes, layer.forward


def changes_of(layer: nn.Module) -> list[FrozenChange]:
    """The changes that a layer computes with at the moment."""
    return [one.change for one in vars(layer).get("laid_changes", ()) if one.switch.is_on]


def laid_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of all changes that a network's layers have, computed at the moment or not."""
    for layer in module.modules():
        for one in vars(layer).get("laid_changes", ()):
            yield from one.change.tensors()


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = type(layer).forward(layer, x)
    for change in changes_of(layer):
        out = change.add_to(out, layer, x)
    return out


def add_low_rank(
    out: Tensor,
    layer: nn.Module,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    between: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Returns `out` + up down x of a Linear (down (r, I), up (O, r)) or a Conv2d (down (r, I, K, K), up (O, r, 1, 1)).

    The small product is accumulated into the output, instead of being written and read once more. `between` changes down x.
    """
    if down.ndim == 2:
        hidden = F.linear(x, down)
        hidden = hidden if between is None else between(hidden)
        return torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.t()).view(out.shape)
    convolution = cast(nn.Conv2d, layer)
    hidden = F.conv2d(x, down, None, convolution.stride, convolution.padding, convolution.dilation)
    return out + F.conv2d(hidden if between is None else between(hidden), up)
