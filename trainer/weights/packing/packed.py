"""A frozen weight in fewer bits as one tensor: codes, and the factors that they are multiplied by."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from torch._ops import OpOverload
    from typing_extensions import Self

Context = tuple[tuple[int, ...], torch.dtype]
"""(shape, dtype that it is unpacked to)."""


class PackedTensor(Tensor):
    """A weight of a shape and a dtype that `dequantize` makes of its `codes` and `factors`. It is moved and copied as it is; what else is
    done to it, is done to plain numbers."""

    codes: Tensor
    factors: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, factors: Tensor, shape: Sequence[int], dtype: torch.dtype) -> "Self":
        made: Self = Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=codes.device)
        made.codes, made.factors = codes, factors
        return made

    def dequantize(self) -> Tensor:
        """The weight as plain numbers of its dtype, not kept."""
        raise NotImplementedError

    def __tensor_flatten__(self) -> tuple[list[str], Context]:
        return ["codes", "factors"], (tuple(self.shape), self.dtype)

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], context: Context, size: object, stride: object
    ) -> "Self":
        return cls(inner["codes"], inner["factors"], *context)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: "OpOverload[..., Any]",
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func not in _MOVES:
            plain, named = tree_map_only(PackedTensor, lambda one: one.dequantize(), (args, given))
            return func(*plain, **named)
        one: PackedTensor = args[0]
        dtype = given.pop("dtype", None) or one.dtype
        given.pop("layout", None)
        parts = [func(part, *args[1:], **given) for part in (one.codes, one.factors)]
        made = type(one)(parts[0], parts[1], one.shape, dtype)
        return return_and_correct_aliasing(func, args, dict(kwargs or {}), made)  # type: ignore[no-untyped-call]


_ATEN = torch.ops.aten
_MOVES = (_ATEN.detach.default, _ATEN._to_copy.default, _ATEN.clone.default, _ATEN.alias.default)
"""What is done to the parts."""
