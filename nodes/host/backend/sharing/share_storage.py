"""A second view of a tensor's storage that autograd accepts: no bytes are copied.

Everything a ComfyUI node makes is an inference tensor, which autograd refuses to save. Outside inference mode a fresh
tensor can be laid over the same storage; it keeps the storage alive by itself.
"""

import dataclasses
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class QuantizedTensor(Tensor):
        """What is used of ComfyUI's class: integers, their layout and its parameters, some of which are tensors."""

        def __init__(self, qdata: Tensor, layout_cls: object, params: DataclassInstance) -> None:
            self._qdata, self._layout_cls, self._params = qdata, layout_cls, params


def share(tensor: Tensor) -> Tensor:
    """A normal tensor over the same storage. Call it outside inference mode. Quantized tensors are rebuilt from shared parts."""
    if is_quantized(tensor):
        return _share_quantized(tensor)
    plain = tensor.detach() if tensor.requires_grad else tensor
    empty = torch.empty(0, dtype=plain.dtype, device=plain.device)
    return empty.set_(plain.untyped_storage(), plain.storage_offset(), plain.shape, plain.stride())


def is_quantized(tensor: object) -> "TypeGuard[QuantizedTensor]":
    """Whether this is ComfyUI's QuantizedTensor, recognised by its members: its class moves between versions."""
    return hasattr(tensor, "_qdata") and hasattr(tensor, "_params")


def _share_quantized(tensor: "QuantizedTensor") -> Tensor:
    params = tensor._params
    shared = {
        field.name: share(value)
        for field in dataclasses.fields(params)
        if isinstance(value := getattr(params, field.name), Tensor)
    }
    return type(tensor)(share(tensor._qdata), tensor._layout_cls, dataclasses.replace(params, **shared))


def codes_of(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns (codes (O, I), factors) of a quantized weight that is codes times a factor for all, or one a row; None for another."""
    if not is_quantized(tensor):
        return None
    params, codes = tensor._params, tensor._qdata
    found = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if tensors.keys() != {"scale"} or found.get("convrot") or found.get("transposed"):
        return None
    factors, rows = tensors["scale"], codes.shape[0]
    by_row = factors.itemsize > 1 and factors.shape in ((), (1,), (rows,), (rows, 1))  # other layouts scale blocks
    return (codes, factors) if by_row and codes.shape == tensor.shape else None


def parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a tensor consists of, in a fixed order: several for a quantized one, else itself."""
    if is_quantized(tensor):
        fields = (getattr(tensor._params, field.name) for field in dataclasses.fields(tensor._params))
        return [tensor._qdata, *(value for value in fields if isinstance(value, Tensor))]
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in parts(getattr(tensor, name))]
    return [tensor]


def storages(tensor: Tensor) -> dict[int, int]:
    """Returns {address: bytes} of the storages behind a tensor, parts of quantized tensors included; for counting what is held."""
    if is_quantized(tensor):
        inner = [tensor._qdata, *(getattr(tensor._params, f.name) for f in dataclasses.fields(tensor._params))]
        return {address: size for part in inner if isinstance(part, Tensor) for address, size in storages(part).items()}
    storage = tensor.untyped_storage()
    return {storage.data_ptr(): storage.nbytes()}
