"""Optimizers by the names of `choices.OPTIMIZERS`, and their state as plain tensors and JSON, without pickle."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..choices import OPTIMIZERS
from ..config.run import OptimizerConfig
from ..errors import ConfigError

RATE_SCALE = "rate_scale"
"""Key of a group of parameters: factor on the learning rate. It is saved with the optimizer's state."""


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise ConfigError for a missing library or an unknown option, before anything is loaded."""
    if config.learning_rate == "auto":
        config = replace(config, learning_rate=1.0)
    make_optimizer([nn.Parameter(torch.zeros(1))], config)


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, scaled: Iterable[tuple[float, list[nn.Parameter]]] = ()
) -> Optimizer:
    """The optimizer of `parameters`; `scaled` are further ones, each group with a factor on the learning rate.

    Raises ConfigError if the library is missing or refuses an option.
    """
    entry = OPTIMIZERS[config.name]
    try:
        cls: Callable[..., Optimizer] = entry.load()
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name = {config.name!r} needs the library {entry.install}: pip install {entry.install}"
        ) from error
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()}
    settings = {"lr": config.rate, "weight_decay": 0.0, **entry.defaults, **options}
    parameters, groups = list(parameters), [(factor, list(group)) for factor, group in scaled]
    every = [*parameters, *(p for _, group in groups for p in group)]
    if entry.can_fuse and "foreach" not in options and {p.device.type for p in every} <= {"cpu", "cuda"}:
        settings = {"fused": True, **settings}
    try:
        given: Any = parameters
        if groups:
            given = [{"params": parameters}, *({"params": group, RATE_SCALE: factor} for factor, group in groups)]
        optimizer = cls(given, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"optimizer.options = {config.options!r}: {config.name} refuses it ({error})") from error
    for group in optimizer.param_groups:  # set afterwards: prodigyopt prints on standard output about it when made
        group["weight_decay"] = config.weight_decay
    return optimizer


def optimizer_of(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig, scales: Mapping[str, float]
) -> Optimizer:
    """The optimizer of an adapter's parameters. `scales` are factors on the learning rate, {beginning of names: factor}."""
    plain = [p for name, p in parameters.items() if not name.startswith(tuple(scales))]
    groups = [
        (factor, [p for name, p in parameters.items() if name.startswith(start)]) for start, factor in scales.items()
    ]
    return make_optimizer(plain, config, groups)


def set_learning_rate(optimizer: Optimizer, rate: float) -> float:
    """Give every group this rate, times its own factor; returns that of the first (Prodigy multiplies it by its estimate)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_SCALE, 1.0)
    return rate * float(optimizer.param_groups[0].get("d", 1.0))


Plain = Any
"""Data for JSON, in which {"tensor": name} stands for a tensor and {"items": …} for a dictionary with its own keys."""


def pack_state(value: Any, name: str, tensors: dict[str, Tensor]) -> Plain:
    """Plain data for a state_dict; tensors go to `tensors` under a dotted name. Raises TypeError on anything else."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone()  # bitsandbytes shares one map between states
        return {"tensor": name}
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
        return tensors[plain["tensor"]].clone()
    if "items" in plain:
        return {key: unpack_state(item, tensors) for key, item in plain["items"]}
    items = [unpack_state(item, tensors) for item in plain["list"]]
    return tuple(items) if plain["tuple"] else items


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The L2 norm of all gradients, which are then scaled down to `limit` if it is larger; 0 sets no limit."""
    return nn.utils.clip_grad_norm_(list(parameters), limit if limit > 0 else float("inf"))
