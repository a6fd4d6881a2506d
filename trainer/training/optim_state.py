"""The state of an optimizer as plain tensors and JSON, without pickle, and whether that is all of it."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import ConfigError
from ..seeding import generator

Plain = Any
"""Data for JSON, in which {"tensor": name} stands for a tensor and {"items": …} for a dictionary with its own keys."""


def pack_state(value: Any, name: str, tensors: dict[str, Tensor]) -> Plain:
    """Plain data for a state_dict; tensors go to `tensors` under a dotted name. Raises TypeError on anything else."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # bitsandbytes shares one map
        stride = torch.empty_like(value, device="meta").stride()
        return {"tensor": name, **({} if value.is_contiguous() else {"stride": list(stride)})}
    if isinstance(value, dict):
        return {"items": [[key, pack_state(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        packed = [pack_state(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"list": packed, "tuple": isinstance(value, tuple)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be stored without pickle")


def unpack_state(plain: Plain, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack_state`."""
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        saved = tensors[plain["tensor"]]
        # Transposed in memory as it was: sums of SOAP's products depend on it in the last bit.
        stride = plain.get("stride", saved.stride())
        return torch.empty_strided(saved.shape, stride, dtype=saved.dtype).copy_(saved)
    if "items" in plain:
        return {key: unpack_state(item, tensors) for key, item in plain["items"]}
    items = [unpack_state(item, tensors) for item in plain["list"]]
    return tuple(items) if plain["tuple"] else items


TRIAL_SHAPES, TRIAL_STEPS = ((96, 8), (8, 64), (128, 64)), 12
"""Two factors of a LoRA, and one tensor that is large enough to be stored in 8 bits; SOAP does something new in its 11th step."""


def refuse_inexact(make: Callable[[Iterable[nn.Parameter]], Optimizer], name: str) -> None:
    """Raise ConfigError unless a run can be continued from the optimizer's state, bit for bit: it is tried on small tensors."""
    reason = ""
    try:
        straight, continued = (_trial(make, interrupted=interrupted) for interrupted in (False, True))
        if not all(torch.equal(a, b) for a, b in zip(straight, continued, strict=True)):
            reason = "a continued run is another: it keeps state elsewhere, or draws random numbers"
    except Exception as error:  # noqa: BLE001 - whatever a class from anywhere raises
        reason = f"{type(error).__name__}: {error}"
    if reason:
        raise ConfigError(
            f"optimizer.name = {name!r} cannot be resumed exactly ({reason}): use another, or other optimizer.options"
        )


def _trial(make: Callable[[Iterable[nn.Parameter]], Optimizer], *, interrupted: bool) -> list[nn.Parameter]:
    """Some tensors after twice `TRIAL_STEPS` steps, between which all is saved and loaded if it is `interrupted`."""
    values = [nn.Parameter(torch.randn(shape, generator=generator(0, "trial", *shape))) for shape in TRIAL_SHAPES]
    optimizer = make(values)
    for step in range(2 * TRIAL_STEPS):
        if interrupted and step == TRIAL_STEPS:
            tensors: dict[str, Tensor] = {}
            state = json.loads(json.dumps(pack_state(optimizer.state_dict(), "optimizer", tensors)))
            values = [nn.Parameter(value.detach().clone()) for value in values]
            optimizer = make(values)
            optimizer.load_state_dict(unpack_state(state, tensors))
        for value in values:
            value.grad = torch.randn(value.shape, generator=generator(0, "trial", step, *value.shape))
        optimizer.step()
    return values
