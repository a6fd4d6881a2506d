"""Whether training moves every module: gradients over the first steps, and what the saved numbers amount to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WATCHED_STEPS = 20
NAMED = 5
"""Modules that a message names before it counts."""


class GradientWatch:
    """Sums the gradient norms of each module over the first steps that are taken while it watches. It changes no number.

    A module whose sum is exactly 0 takes part in nothing that the loss depends on: its adapter will stay as it began.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        """`parameters` are those of an adapter, {"module path|tensor": parameter}."""
        self.steps = 0
        self.sums = {name: torch.zeros((), device=p.device) for name, p in parameters.items()}
        self._parameters = parameters
        self._hook: Any = optimizer.register_step_pre_hook(self._see)

    @torch.no_grad()
    def _see(self, *_: object) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self.sums[name] += parameter.grad.norm()
        self.steps += 1
        if self.steps == WATCHED_STEPS:
            self._hook.remove()

    def without_gradient(self) -> list[str]:
        """Paths of the modules whose gradient was exactly 0 in every step so far."""
        reached = [float(value) != 0 for value in self.sums.values()]  # a NaN is a gradient too
        modules: dict[str, bool] = {}
        for name, one in zip(self.sums, reached, strict=True):
            modules[module_of(name)] = modules.get(module_of(name), False) or one
        return [module for module, any_of_it in modules.items() if not any_of_it]

    def text(self) -> str:
        """Which modules had no gradient; "" if all had one."""
        idle, total = self.without_gradient(), len({module_of(name) for name in self.sums})
        return (
            f"{len(idle)} of {total} modules had no gradient in {self.steps} steps: {named(idle)}. The loss does not depend "
            "on them; network.exclude_modules leaves them out"
            if idle
            else ""
        )


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
