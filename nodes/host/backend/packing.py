"""Conditioning as named tensors and back, so that the engine's cache can hold it: lists are numbered, plain values are JSON."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

PLAIN = "__plain__"


def pack(values: Mapping[str, object]) -> dict[str, Tensor]:
    """Tensors, lists of tensors and plain JSON values under one flat set of names. Raises TypeError on anything else."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu()
        elif isinstance(value, list) and value and all(isinstance(item, Tensor) for item in value):
            tensors |= {f"{name}[{i}]": item.detach().cpu() for i, item in enumerate(value)}
        elif is_plain(value):
            plain[name] = value
        else:
            raise TypeError(f"{name} is a {type(value).__name__}")
    text = json.dumps(plain, sort_keys=True).encode()
    tensors[PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8).clone()
    return tensors


def is_plain(value: object) -> bool:
    """Numbers, text, None and nested lists of them."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The inverse of `pack`."""
    values: dict[str, object] = json.loads(bytes(tensors[PLAIN].tolist()))
    lists: dict[str, list[Tensor]] = {}
    for name, tensor in sorted(tensors.items(), key=_order):
        if name.endswith("]"):
            stem = name[: name.rindex("[")]
            values[stem] = members = lists.setdefault(stem, [])
            members.append(tensor)
        elif name != PLAIN:
            values[name] = tensor
    return values


def _order(item: tuple[str, Tensor]) -> tuple[str, int]:
    """List members by their number."""
    name = item[0]
    if name.endswith("]"):
        stem, _, number = name[:-1].rpartition("[")
        return stem, int(number)
    return name, -1
