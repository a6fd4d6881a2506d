"""How many bytes of tensors are alive: now, at most, and which arithmetic was done meanwhile."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from torch._ops import OpOverload

Formula = Callable[..., int]


class LiveBytes(TorchDispatchMode):
    """Counts each storage from the first operation that returns it until it is freed, on every device together.

    Tensors that exist already must be given to `hold`: a view of theirs would else count as new. What a kernel allocates for
    itself is not seen. Used as a context manager; modes that are entered before it answer its operations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.flop = 0
        """Floating-point operations of matrix products, convolutions and attention, recomputation included."""
        self._seen: set[int] = set()
        self._formulas = _formulas()

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count these from now on; returns their bytes, of each storage once."""
        before = self.live
        for tensor in tensors:
            for part in _parts(tensor):
                self._see(part)
        return self.live - before

    def restart(self) -> None:
        """Forget the peak and the arithmetic so far."""
        self.peak, self.flop = self.live, 0

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self,
        func: "OpOverload[..., Any]",
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        for made in out if isinstance(out, list | tuple) else (out,):
            if isinstance(made, Tensor):
                self._see(made)
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.flop += int(formula(*args, **given, out_val=out))
        return out


def _parts(tensor: Any) -> list[Tensor]:
    """The plain tensors that a tensor consists of: several for a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _formulas() -> dict[Any, Formula]:
    """Returns {operation: FLOP from its arguments and `out_val`}: torch's own, and those of attention on a CPU."""
    from torch.utils.flop_counter import flop_registry

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_flop(query: Tensor, key: Tensor, *rest: object, **others: object) -> int:
        batch, heads, length, width = query.shape
        return 4 * batch * heads * length * key.shape[-2] * width

    def backward_flop(grad: Tensor, query: Tensor, key: Tensor, *rest: object, **others: object) -> int:
        return forward_flop(query, key) * 5 // 2

    def product_flop(first: Tensor, second: Tensor, *rest: object, **others: object) -> int:
        return 2 * first.shape[0] * first.shape[1] * second.shape[1]

    integers = torch.ops.aten._int_mm
    return {**flop_registry, attention: forward_flop, backward: backward_flop, integers: product_flop}
