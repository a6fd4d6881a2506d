"""Steps of any optimizer on weights in bfloat16, computed in fp32 and rounded at random so that small steps are not lost.

A step is often smaller than half the distance to the next number in bfloat16, and rounding to the nearest would never take it.
Rounded at random, with the probability that the distance gives, the weight moves by the step on average
(Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551, section 3).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..seeding import generator

CUT = 16
"""Bits of an fp32 number that bfloat16 has not."""
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


def rounded(values: Tensor, dtype: torch.dtype, source: torch.Generator) -> Tensor:
    """The fp32 `values` in `dtype`, bfloat16 or float32: a number between two neighbours becomes either, in the mean itself."""
    if dtype == torch.float32:
        return values
    assert dtype == torch.bfloat16, f"{dtype} has no random rounding"
    noise = torch.randint(0, 1 << CUT, values.shape, generator=source, device=values.device, dtype=torch.int32)
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << CUT)
    return bits.view(torch.float32).to(torch.bfloat16)


class RoundedOptimizer(Optimizer):
    """One optimizer for each tensor, which it steps as an fp32 copy that lives for that moment, so that no second set of weights is kept.

    What an optimizer finds out about all tensors together (Prodigy's rate) it cannot have. The random numbers are a function
    of the seed, the number of the step and the tensor: a continued run draws the same.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], make: MakeOptimizer, seed: int) -> None:
        """`groups` as torch takes them, each with its "lr"; `make` makes the optimizer of one parameter."""
        super().__init__(list(groups), {})
        self.steps, self.seed = 0, seed
        self._copies: list[nn.Parameter] = []
        self._inner: list[Optimizer] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                copy = nn.Parameter(parameter.detach().float())
                self._copies.append(copy)
                self._inner.append(make([copy]))
                _empty(copy)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step of every parameter that has a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(number, parameter, group["lr"])
                number += 1
        self.steps += 1

    def _step(self, number: int, parameter: nn.Parameter, rate: float) -> None:
        copy, inner = self._copies[number], self._inner[number]
        copy.data = parameter.detach().float()
        copy.grad = None if parameter.grad is None else parameter.grad.float()
        for group in inner.param_groups:
            group["lr"] = rate
        with torch.enable_grad():
            inner.step()
        source = generator(self.seed, "rounding", self.steps, number, device=parameter.device)
        parameter.copy_(rounded(copy.data, parameter.dtype, source))
        _empty(copy)

    def state_dict(self) -> dict[str, Any]:
        """The number of the step and the states of all optimizers."""
        return {"steps": self.steps, "inner": [inner.state_dict() for inner in self._inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the states back."""
        self.steps = state_dict["steps"]
        for inner, state in zip(self._inner, state_dict["inner"], strict=True):
            inner.load_state_dict(state)


def _empty(copy: nn.Parameter) -> None:
    copy.grad = None
    copy.data = copy.data.new_empty(0)
