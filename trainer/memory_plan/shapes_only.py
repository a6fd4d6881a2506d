"""Running a network's own code on shapes: no number is computed, no weight is needed, every allocation happens on paper."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._ops import OpOverload

META = torch.device("meta")
FLASH_WIDTH = 256
"""The widest attention head that has a kernel without the (L, L) matrix."""


class _KeepShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating tensors of the meta device stay there, whatever device they are sent to. Integers and masks, which networks
    decide by (lengths of texts, places of tokens), are computed on the CPU; where both meet, the result is a shape."""

    def __torch_dispatch__(
        self,
        func: "OpOverload[..., Any]",
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [part for value in (*args, *given.values()) for part in _tensors(value)]
        if func.overloadpacket in _BY_INDEX:  # a mask has no count of places once it is a shape
            args = (args[0], _places(args[1]), *args[2:])
        if any(tensor.is_meta for tensor in tensors):
            args = tuple(_to_meta(value) for value in args)
            given = {name: _to_meta(value) for name, value in given.items()}
            if "device" in given and given["device"] is not None:
                given["device"] = META
        elif (
            given.get("device") is not None
            and torch.device(given["device"]) == META
            and not _floats(func, args, given, tensors)
        ):
            given["device"] = torch.device("cpu")
        quick = _QUICK.get(func)
        answer = quick(*args, **given) if quick is not None and args[0].is_meta else None
        return func(*args, **given) if answer is None else answer


def _alike(first: Tensor, *others: Any, **options: Any) -> Tensor | None:
    """The shape of an element by element operation on tensors of one layout; None for others."""
    dtype = first.dtype
    for other in others:
        if isinstance(other, Tensor) and other.ndim:
            if other.shape != first.shape or other.stride() != first.stride():
                return None
            dtype = torch.promote_types(dtype, other.dtype)
    if not dtype.is_floating_point:
        return None
    return torch.empty_like(first, dtype=dtype)


def _layer_norm(x: Tensor, shape: list[int], *rest: Any, **options: Any) -> tuple[Tensor, ...]:
    """Returns (like the input, means, reciprocal deviations)."""
    kept = [*x.shape[: x.ndim - len(shape)], *[1] * len(shape)]
    return torch.empty(x.shape, dtype=x.dtype, device=META), _statistic(kept), _statistic(kept)


def _group_norm(x: Tensor, w: Tensor | None, b: Tensor | None, n: int, c: int, hw: int, groups: int, eps: float) -> Any:
    """Returns the same of a group norm."""
    return torch.empty(x.shape, dtype=x.dtype, device=META), _statistic([n, groups]), _statistic([n, groups])


def _norm_backward(grad: Tensor, x: Tensor, *rest: Any, **options: Any) -> Any:
    """Returns (gradient of the input, none of weight and bias); None where these are trained."""
    wanted = rest[-1]
    return None if any(wanted[1:]) else (torch.empty(x.shape, dtype=x.dtype, device=META), None, None)


def _statistic(shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=META)


_ATEN = torch.ops.aten
_QUICK: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            _ATEN.mul.Tensor, _ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.div.Tensor, _ATEN.mul.Scalar, _ATEN.div.Scalar,
            _ATEN.pow.Tensor_Scalar, _ATEN.silu.default, _ATEN.gelu.default, _ATEN.silu_backward.default,
            _ATEN.gelu_backward.default,
        ),
        _alike,
    ),
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_group_norm.default: _group_norm,
    _ATEN.native_layer_norm_backward.default: _norm_backward,
    _ATEN.native_group_norm_backward.default: _norm_backward,
}  # fmt: skip
"""Operations whose shapes torch works out in Python, in milliseconds each: answered here."""


def _floats(func: Any, args: tuple[Any, ...], given: Mapping[str, Any], tensors: list[Tensor]) -> bool:
    """Whether an operation that names the meta device makes floating numbers."""
    dtype = given.get("dtype")
    if dtype is not None:
        return bool(dtype.is_floating_point)
    if func.overloadpacket is _ATEN.arange:  # its numbers are of the kind that its ends are
        return any(isinstance(end, float) for end in args)
    return all(tensor.is_floating_point() for tensor in tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


_BY_INDEX = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index}


def _places(indices: Any) -> list[Any]:
    """The same with masks as the places where they are true."""
    found: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta
        found += index.nonzero(as_tuple=True) if is_mask else (index,)
    return found


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (
            value
            if value.is_meta or value.ndim == 0
            else torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
        )
    if isinstance(value, list | tuple):
        return type(value)(_to_meta(item) for item in value)
    return value


class _FusedAttention(TorchFunctionMode):
    """Attention of meta tensors as a device's fused kernels do it: without the matrix of all pairs of tokens."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and _is_fused(args, given):
            return _attention(*args, **given)
        if func is not torch.Tensor.backward:
            return func(*args, **given)
        loss = args[0]
        engine = torch.autograd.Variable._execution_engine
        with cast(Any, _FusedAttention)():  # a mode is off while it answers, and blocks are recomputed in here
            return engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


def _is_fused(args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    query = args[0] if args else given["query"]
    return bool(query.is_meta and query.ndim == 4 and query.shape[-1] <= FLASH_WIDTH)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(groups, -3) for part in (key, value))
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return cast(Tensor, kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0])


@contextmanager
def shapes_only() -> Iterator[None]:
    """In the block, tensors of the meta device are computed with as shapes; nothing leaves that device."""
    with cast(Any, _FusedAttention)(), cast(Any, _KeepShapes)():
        yield
