"""A module's forward with new tensors where it writes over the ones it has.

Autograd refuses what writes over a saved tensor, and operators with an output argument. This is right for a block that hands its
result on, and wrong for one that changes an argument for its caller to see: use it for classes that were compared.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PLAIN: Mapping[str, Callable[..., Tensor]] = {
    "add_": torch.add, "sub_": torch.sub, "mul_": torch.mul, "div_": torch.div, "addcmul_": torch.addcmul,
}  # fmt: skip


class OutOfPlace(TorchFunctionMode):
    """Operators make new tensors. What was written over is known by its object: later operators, and the block's result, take its
    last value. A view is written over as it is, because its base must see it."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # with the object itself, so that its number is not given again

    def last(self, value: Any) -> Any:
        """The value, with what was written over replaced."""
        if isinstance(value, Tensor):
            return self._last[id(value)][1] if id(value) in self._last else value
        if isinstance(value, tuple | list) and any(isinstance(one, Tensor | tuple | list) for one in value):
            return type(value)(self.last(one) for one in value) if type(value) in (tuple, list) else value
        return value

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {name: self.last(value) for name, value in (kwargs or {}).items() if name != "out"}
        target = (kwargs or {}).get("out")
        name = getattr(func, "__name__", "")
        args = tuple(args)
        if target is None and name in PLAIN and isinstance(args[0], Tensor) and not args[0]._is_view():
            target, func = args[0], PLAIN[name]
        result = func(*self.last(args), **given)
        if target is None:
            return result
        self._last[id(target)] = (target, result)
        return result


@cache
def out_of_place_class(kind: Any) -> type[nn.Module]:
    """A class like `kind`, of the same name, whose forward leaves its arguments as they are."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with OutOfPlace() as mode:
            return mode.last(kind.forward(self, *args, **kwargs))

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
