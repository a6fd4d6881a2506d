"""Whether training moves every module: gradients over the first steps, and what the saved numbers amount to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WATCHED_STEPS = 20
STANDSTILL = 1e-6
"""Share of its size that an adapter moves in the first steps at the least, if its learning rate does anything."""
NAMED = 5
"""Modules that a message names before it counts."""


class GradientWatch:
    """Sums the gradient norms of each module over the first steps that are taken while it watches, and measures how far each
    has moved in them. It changes no number.

    A module whose sum is exactly 0 takes part in nothing that the loss depends on: its adapter will stay as it began.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, *, moves: bool = True) -> None:
        """`parameters` are those of an adapter, {"module path|tensor": parameter}. Without `moves` their first values are not kept,
        and how far they have moved is not known."""
        self.steps = 0
        self.sums = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}
        self.moves: dict[str, Tensor] = {}
        """Squared distance that each parameter has moved, once the steps are over."""
        self._start = {name: p.detach().clone() for name, p in parameters.items()} if moves else {}
        self._parameters = parameters
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._see),
            optimizer.register_step_post_hook(self._end),
        ]

    @torch.no_grad()
    def _see(self, *_: object) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.sums[name] += parameter.grad.norm()

    def _end(self, *_: object) -> None:
        self.steps += 1
        if self.steps == WATCHED_STEPS:
            self.close()

    @torch.no_grad()
    def close(self) -> None:
        """Measure the way so far, and watch no more."""
        for hook in self._hooks:
            hook.remove()
        for name, start in self._start.items():
            self.moves[name] = (self._parameters[name] - start).float().square().sum()
        self._start = {}

    def without_gradient(self) -> list[str]:
        """Paths of the modules whose gradient was exactly 0 in every step so far."""
        return [module for module, norm in self.gradients().items() if norm == 0]  # a NaN is a gradient too

    def gradients(self) -> dict[str, float]:
        """Returns {module path: sum of its gradient norms}."""
        return _by_module({name: float(value) for name, value in self.sums.items()})

    def updates(self) -> dict[str, float]:
        """Returns {module path: distance that its parameters have moved}."""
        squares = _by_module({name: float(value) for name, value in self.moves.items()})
        return {module: square**0.5 for module, square in squares.items()}

    def way(self) -> float:
        """The distance that all parameters together have moved, relative to their size."""
        size = sum(float(p.detach().float().square().sum()) for p in self._parameters.values()) ** 0.5
        return sum(float(square) for square in self.moves.values()) ** 0.5 / size if size else 0.0

    def text(self) -> str:
        """Which modules had no gradient, and whether the learning rate moves anything; "" if all is well."""
        idle, total = self.without_gradient(), len({module_of(name) for name in self.sums})
        lines = []
        if idle:
            lines.append(
                f"{len(idle)} of {total} modules had no gradient in {self.steps} steps: {named(idle)}. The loss does not depend "
                "on them; network.exclude_modules leaves them out"
            )
        if len(idle) < total and self.moves and self.way() < STANDSTILL:
            lines.append(
                f"the weights have moved by {self.way():.0e} of their size in {self.steps} steps: this learning rate changes nothing"
            )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For run.json: the gradients and updates of the first steps, least, middle and most of all modules."""
        found: dict[str, Any] = {"steps": self.steps, "without_gradient": self.without_gradient(), "way": self.way()}
        for what, norms in (("gradient_norms", self.gradients()), ("update_norms", self.updates())):
            ranked = sorted(norms, key=lambda module: norms[module])
            chosen = (ranked[0], ranked[len(ranked) // 2], ranked[-1]) if ranked else ()
            found[what] = {module: norms[module] for module in chosen}
        return found


def _by_module(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over the parameters of each module."""
    sums: dict[str, float] = {}
    for name, value in values.items():
        sums[module_of(name)] = sums.get(module_of(name), 0.0) + value
    return sums


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How many modules training has moved."""

    modules: int
    unmoved: list[str]

    @property
    def none(self) -> bool:
        """Whether the adapter does nothing at all."""
        return len(self.unmoved) >= self.modules

    def text(self) -> str:
        """How many, and which not."""
        if self.none:
            return f"none of the {self.modules} modules moved"
        still = f"; not moved: {named(self.unmoved)}" if self.unmoved else ""
        return f"{self.modules - len(self.unmoved)} of {self.modules} modules moved{still}"


def module_of(parameter: str) -> str:
    """The module path in the name of an adapter's parameter."""
    return parameter.partition("|")[0]


@torch.no_grad()
def unmoved(parameters: Mapping[str, Tensor], dtype: torch.dtype) -> list[str]:
    """Paths of the modules whose adapter does nothing once it is rounded to `dtype`: one of its factors is all zero.

    Every kind of adapter is a product, of which one factor begins at zero.
    """
    zero = {name for name, value in parameters.items() if not bool(value.to(dtype).any())}
    return list(dict.fromkeys(module_of(name) for name in parameters if name in zero))


def named(modules: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(modules) - NAMED} more" if len(modules) > NAMED else ""
    return ", ".join(modules[:NAMED]) + more
