"""Quantizing a frozen base model: int8, int4, int2 or float8 by optimum-quanto, nf4 by bitsandbytes; dequantized on each use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .frozen import FrozenLinear, dense, is_quantized_tensor, replace_module
from .nf4 import KIND, to_nf4
from .quanto_kernels import load_kernels
from .row_parts import FusedLinear, RowPart

KINDS = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "float8": "qfloat8"}


def check_quantize(kind: str) -> None:
    """Raise ConfigError if a base model shall be quantized and the library for it is missing. `kind` is the setting model.quantize."""
    if kind == KIND:
        _require_bitsandbytes(f"quantize = {kind!r}")
    elif kind != "none":
        require_quanto(f"quantize = {kind!r}")


def _require_bitsandbytes(what: str) -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f'{what} needs the library bitsandbytes: pip install "bitsandbytes>=0.50"')


def require_quanto(what: str) -> None:
    """Raise ConfigError if optimum-quanto is missing. `what` names the setting that needs it.

    It is not in requirements.txt, because it requires torch 2.6 and pip would replace ComfyUI's older torch.
    """
    if find_spec("optimum") is None or find_spec("optimum.quanto") is None:
        raise ConfigError(
            f"{what} needs the library optimum-quanto: pip install optimum-quanto (it requires torch 2.6 or newer, this is {torch.__version__})"
        )


def quantize(
    module: nn.Module,
    kind: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    keep: bool = False,
) -> None:
    """Quantize the weight of every Linear in place, one at a time, after moving it to `dtype` and `device`.

    `keep`: each layer goes on referring to the weight that it was made of, until `drop_originals`.

    The quantized layer computes in `dtype` (None: the weight's own, bfloat16 for fp8). Convolutions, norms and embeddings
    keep their dtype, because they are few and sensitive. A Linear that is already quantized is left as it is. Raises
    KeyError for an unknown kind, ConfigError where what unpacks the kind cannot be compiled.
    """
    pack = _in_nf4 if kind == KIND else _by_quanto(KINDS[kind])
    load_kernels(kind, device or next(module.parameters()).device)
    paths = [
        path
        for path, part in module.named_modules()
        if type(part) in (nn.Linear, FrozenLinear, FusedLinear) and not is_quantized_tensor(part.weight)
    ]

    def packed(linear: nn.Linear) -> nn.Linear:
        made = pack(plain_linear(linear, dtype, device))
        if keep:
            whole = linear if isinstance(linear, FusedLinear) else made  # a fused one stays, with another weight
            whole.original = Original(linear.weight.detach(), getattr(linear, "scale", None))  # type: ignore[assignment]
        return made

    pack_linears(module, paths, packed, progress)


@dataclass(frozen=True)
class Original:
    """What a quantized weight was made of, in a plain object, so that torch moves and saves none of it."""

    weight: Tensor
    scale: Tensor | None


def original_of(layer: nn.Module, device: torch.device) -> Tensor | None:
    """The weight that a quantized Linear was made of, fp32 on a device; None where nothing is known of it."""
    whole, rows = (layer._whole[0], layer._rows) if isinstance(layer, RowPart) else (layer, slice(None))
    found: Original | None = getattr(whole, "original", None)
    if found is None:
        return None
    return dense(found.weight.to(device), torch.float32, found.scale)[rows]


def drop_originals(module: nn.Module) -> None:
    """Let go of the weights that `quantize` kept."""
    for part in module.modules():
        vars(part).pop("original", None)


def pack_linears(
    module: nn.Module,
    paths: Sequence[str],
    pack: Callable[[nn.Linear], nn.Linear],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Put what `pack` makes of them in the place of a network's Linears, one at a time; a fused one keeps its parts, which read it."""
    for index, path in enumerate(paths):
        linear = cast(nn.Linear, module.get_submodule(path))
        packed = pack(linear)
        if isinstance(linear, FusedLinear):
            linear.weight, linear.bias, linear.scale = packed.weight, packed.bias, None
        else:
            replace_module(module, path, packed)
        progress(index + 1, len(paths))


def _by_quanto(name: str) -> Callable[[nn.Linear], nn.Linear]:
    """What makes a Linear one of optimum-quanto's, of the type of this name there."""
    from optimum import quanto
    from optimum.quanto.nn import QLinear

    def pack(linear: nn.Linear) -> nn.Linear:
        packed = QLinear.from_module(linear, weights=getattr(quanto, name))
        packed.freeze()
        return cast(nn.Linear, packed.requires_grad_(False))

    return pack


def _in_nf4(linear: nn.Linear) -> nn.Linear:
    linear.weight = nn.Parameter(to_nf4(linear.weight), requires_grad=False)
    linear.__class__ = FrozenLinear
    return linear.eval()


def plain_linear(
    linear: nn.Linear, dtype: torch.dtype | None, device: torch.device | None, *, weight: bool = True
) -> nn.Linear:
    """The same layer with a dense weight, multiplied by its scale, in a dtype that has arithmetic; or without a weight."""
    stored = linear.weight.dtype
    dtype = dtype or (torch.bfloat16 if stored.itemsize == 1 else stored)
    device = device or linear.weight.device
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    if weight:
        found = dense(linear.weight.detach().to(device), dtype, getattr(linear, "scale", None))
        plain.weight = nn.Parameter(found, requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias.detach().to(device, dtype), requires_grad=False)
    return plain


def is_quantized(module: nn.Module) -> bool:
    """Whether any Linear of a network has a quantized weight."""
    return any(isinstance(part, nn.Linear) and is_quantized_tensor(part.weight) for part in module.modules())


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers: quantized ones at their quantized size, shared storage once."""
    seen: dict[int, int] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        for part in _inner(tensor):
            storage = part.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that make up a quantized tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _inner(getattr(tensor, name))]
    return [tensor]
