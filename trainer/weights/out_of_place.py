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
    last value. Of a view its whole tensor gets a new value, which other views of it show too."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # with the object itself, so that its number is not given again

    def last(self, value: Any) -> Any:
        """The value, with what was written over replaced."""
        if isinstance(value, Tensor):
            return self._newest(value)
        if type(value) in (tuple, list) and any(isinstance(one, Tensor | tuple | list) for one in value):
            return type(value)(self.last(one) for one in value)
        return value

    def _newest(self, value: Tensor) -> Tensor:
        while id(value) in self._last:
            value = self._last[id(value)][1]
        whole = value._base if self._last and value._is_view() else None
        if whole is None or id(whole) not in self._last:
            return value
        return _seen_in(self._newest(whole), value, whole)

    def _keep(self, target: Tensor, result: Tensor) -> None:
        whole = target._base if target._is_view() else None
        if whole is None:
            self._last[id(target)] = (target, result)
            return
        made = self._newest(whole).clone()
        _seen_in(made, target, whole).copy_(result)
        self._last[id(whole)] = (whole, made)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {name: self.last(value) for name, value in (kwargs or {}).items() if name != "out"}
        target = (kwargs or {}).get("out")
        name = getattr(func, "__name__", "")
        args = tuple(args)
        if target is None and name in PLAIN and isinstance(args[0], Tensor):
            target, func = args[0], PLAIN[name]
        result = func(*self.last(args), **given)
        if target is not None:
            self._keep(target, result)
        return result


def _seen_in(new: Tensor, view: Tensor, whole: Tensor) -> Tensor:
    """The part of `new` that `view` is of `whole`."""
    assert new.stride() == whole.stride(), "a new value is laid out as the old one"
    offset = new.storage_offset() + view.storage_offset() - whole.storage_offset()
    return new.as_strided(view.size(), view.stride(), offset)


@cache
def out_of_place_class(kind: Any) -> type[nn.Module]:
    """A class like `kind`, of the same name, whose forward leaves its arguments as they are."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with OutOfPlace() as mode:
            result = kind.forward(self, *args, **kwargs)
        return mode.last(result)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
