"""What runs through every Linear of a network, seen by running it without numbers on torch's meta device.

A Linear that makes modulation has as many rows whatever the size of the image and the length of the text: one per sample, or one per
timestep. Names need not be known for that. And a Linear whose output reaches nothing gets no gradient, ever: the last block's
text output in networks with two streams. Nothing is computed and no weight is read; a network that asks a tensor for its value
in between cannot be probed, and is read by structure and names alone (`roles.py`).
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What several runs have shown, as paths of Linears."""

    constant: frozenset[str]
    """With as many rows in every run."""
    idle: frozenset[str]
    """Without a gradient: nothing that they compute reaches the output, or they were never called."""


def meta_twin(network: nn.Module) -> nn.Module:
    """The same network without numbers: parameters and buffers on the meta device, nothing of it shared or copied."""
    memo: dict[int, object] = {}
    for module in network.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                empty = torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
                is_weight = isinstance(value, nn.Parameter)
                memo[id(value)] = nn.Parameter(empty, requires_grad=False) if is_weight else empty
    return copy.deepcopy(network, memo)


def probe(twin: nn.Module, runs: Sequence[Callable[[], Tensor]]) -> Probe:
    """Run a network on the meta device at two or more sizes; each run returns the output. Raises whatever the network raises."""
    linears = {path: part for path, part in twin.named_modules() if isinstance(part, nn.Linear)}
    rows: dict[str, list[int]] = {path: [] for path in linears}
    marks = {path: torch.zeros((), device="meta", requires_grad=True) for path in linears}

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows[path].append(output.numel() // output.shape[-1])
            return output + marks[path].to(output.dtype)

        return hook

    handles = [part.register_forward_hook(note(path)) for path, part in linears.items()]
    try:
        with torch.enable_grad():
            gradients = _gradients([run() for run in runs], list(marks.values()))
    finally:
        for handle in handles:
            handle.remove()
    called = {_alike(path) for path, seen in rows.items() if seen}
    dead = {path for path, gradient in zip(marks, gradients, strict=True) if gradient is None}
    idle = {path for path in dead if rows[path] or _alike(path) not in called}
    constant = {path for path, seen in rows.items() if len(seen) >= len(runs) and len(set(seen)) == 1}
    return Probe(constant=frozenset(constant), idle=frozenset(idle))


def _gradients(outputs: Sequence[Tensor], marks: list[Tensor]) -> Sequence[Tensor | None]:
    """One for each mark; None for a mark that no output depends on."""
    total = sum((output.sum() for output in outputs), torch.zeros((), device="meta"))
    return torch.autograd.grad(total, marks, allow_unused=True)


def _alike(path: str) -> str:
    """The path without its numbers: experts that were not chosen are as alive as those that were."""
    return re.sub(r"\d+", "N", path)
