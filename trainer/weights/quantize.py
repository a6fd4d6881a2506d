"""A frozen base packed by optimum-quanto: int8, int4, int2 or float8 weights that are unpacked on each use."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .frozen import FrozenLinear, dense, is_packed
from .row_parts import FusedLinear

KINDS = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"}


def check_quantize(kind: str) -> None:
    """Raise ConfigError if a quantized base is asked for and cannot be made here."""
    if kind != "none":
        require_quanto(f"quantize = {kind!r}")


def require_quanto(what: str) -> None:
    """Raise ConfigError if optimum-quanto is missing.

    requirements.txt leaves it out: it asks for torch 2.6, and pip would replace a host's older torch for it.
    """
    if find_spec("optimum") is None or find_spec("optimum.quanto") is None:
        raise ConfigError(
            f"{what} needs the library optimum-quanto: pip install optimum-quanto (it asks for torch 2.6 or newer, this is {torch.__version__})"
        )


def quantize(
    module: nn.Module,
    kind: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Pack every Linear's weight in place, one at a time: brought to `dtype` and `device`, packed, the original dropped.

    `dtype` (None: the weight's own, bfloat16 for fp8) is what the packed layer computes in. Convolutions, norms and
    embeddings keep their format: they are few and sensitive. A Linear that is already packed stays as it is. Raises
    KeyError on an unknown kind.
    """
    from optimum.quanto import qfloat8, qint2, qint4, qint8
    from optimum.quanto.nn import QLinear

    qtype: Any = {"qint8": qint8, "qint4": qint4, "qint2": qint2, "qfloat8": qfloat8}[KINDS[kind]]
    paths = [
        path
        for path, part in module.named_modules()
        if type(part) in (nn.Linear, FrozenLinear, FusedLinear) and not is_packed(part.weight)
    ]
    for index, path in enumerate(paths):
        linear = module.get_submodule(path)
        packed = QLinear.from_module(_plain(linear, dtype, device), weights=qtype)
        packed.freeze()
        packed.requires_grad_(False)
        if isinstance(linear, FusedLinear):  # its parts go on reading it
            linear.weight, linear.bias, linear.scale = packed.weight, packed.bias, None
        else:
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent) if parent else module, leaf, packed)
        progress(index + 1, len(paths))


def _plain(linear: Any, dtype: torch.dtype | None, device: torch.device | None) -> nn.Linear:
    """The same layer as plain numbers: a scale multiplied in, and no format that cannot be computed with."""
    stored = linear.weight.dtype
    dtype = dtype or (torch.bfloat16 if stored.itemsize == 1 else stored)
    device = device or linear.weight.device
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(dense(linear.weight.detach().to(device), dtype, getattr(linear, "scale", None)), False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias.detach().to(device, dtype), requires_grad=False)
    return plain


def is_quantized(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Linear) and is_packed(part.weight) for part in module.modules())


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, packed ones at their packed size, shared storage counted once."""
    seen: dict[int, int] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        for part in _inner(tensor):
            storage = part.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a packed one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _inner(getattr(tensor, name))]
    return [tensor]
