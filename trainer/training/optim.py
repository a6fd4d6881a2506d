"""Optimizers by the names of `choices.OPTIMIZERS`, or by the path of their class."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..choices import OPTIMIZERS
from ..config.run import NetworkConfig, OptimizerConfig
from ..errors import ConfigError
from ..full.rounding import RoundedOptimizer
from ..lora.per_module import rate_factors
from .optim_state import refuse_inexact

RATE_SCALE = "rate_scale"
"""Key of a group of parameters: factor on the learning rate. It is saved with the optimizer's state."""


def check_optimizer(
    config: OptimizerConfig, network: NetworkConfig | None = None, ema_decay: float | str = 0.0
) -> None:
    """Raise ConfigError for a missing library, an unknown option, a class that cannot be resumed, or what does not go together, before anything is loaded."""
    if isinstance(config.learning_rate, str):
        config = replace(config, learning_rate=1.0)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(2, 2))], config)
    if config.name not in OPTIMIZERS:
        refuse_inexact(partial(make_optimizer, config=config), config.name)
    network = network or NetworkConfig()
    decay = 0.0 if ema_decay == "auto" else ema_decay
    limits = {"training.ema_decay": decay, "network.scale_weight_norms": network.scale_weight_norms}
    if _averages(optimizer):
        _refuse(limits, f"{config.name} averages the weights by itself; set it to 0, or use another optimizer")
    if config.entry.finds_rate:
        rates = {
            "network.loraplus_lr_ratio": network.loraplus_lr_ratio - 1,
            "network.module_rates": network.module_rates,
        }
        _refuse(rates, f"{config.name} finds one rate for all; leave it out, or use another optimizer")


def _refuse(values: Mapping[str, object], remedy: str) -> None:
    """Raise ConfigError for the first of these settings that is set."""
    for name, value in values.items():
        if value:
            raise ConfigError(f"{name}: {remedy}")


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, scaled: Iterable[tuple[float, list[nn.Parameter]]] = ()
) -> Optimizer:
    """The optimizer of `parameters`; `scaled` are further ones, each group with a factor on the learning rate.

    Raises ConfigError if the library is missing or refuses an option.
    """
    entry, cls = config.entry, _class(config)
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()}
    named = _argument_names(cls)
    if unknown := options.keys() - named:
        raise ConfigError(
            f"optimizer.options = {config.options!r}: {config.name} refuses it (it has no argument {min(unknown)})"
        )
    settings = {"lr": config.rate, "weight_decay": 0.0, **entry.defaults, **options}
    settings = {name: value for name, value in settings.items() if name in named}
    parameters, groups = list(parameters), [(factor, list(group)) for factor, group in scaled]
    every = [*parameters, *(p for _, group in groups for p in group)]
    if entry.can_fuse and "foreach" not in options and {p.device.type for p in every} <= {"cpu", "cuda"}:
        settings = {"fused": True, **settings}
    try:
        given: Any = parameters
        if groups:
            given = [{"params": parameters}, *({"params": group, RATE_SCALE: factor} for factor, group in groups)]
        with redirect_stdout(sys.stderr):  # standard output belongs to --json, and some print when they are made
            optimizer = cls(given, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"optimizer.options = {config.options!r}: {config.name} refuses it ({error})") from error
    _set_decay(optimizer, config)
    if hasattr(optimizer, "train"):  # schedule-free: it begins as if for evaluation
        optimizer.train()
    return optimizer


def _class(config: OptimizerConfig) -> Callable[..., Optimizer]:
    entry = config.entry
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        if not entry.install:
            raise ConfigError(
                f"optimizer.name = {config.name!r}: {error}; install its library, or choose another"
            ) from error
        raise ConfigError(
            f"optimizer.name = {config.name!r} needs the library {entry.install}: pip install {entry.install}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise ConfigError(f"optimizer.name = {config.name!r}: it is no optimizer of torch's interface")
    return cls


def _argument_names(cls: Callable[..., Optimizer]) -> set[str]:
    """Names of the arguments that a class states; some take any others besides, and ignore them."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind not in kinds}


def _set_decay(optimizer: Optimizer, config: OptimizerConfig) -> None:
    """Raises ConfigError where there is none."""
    if config.weight_decay and "weight_decay" not in optimizer.param_groups[0]:
        raise ConfigError(f"optimizer.weight_decay = {config.weight_decay}: {config.name} has none; set it to 0")
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay


def averages_itself(config: OptimizerConfig) -> bool:
    """Whether the optimizer is a schedule-free one, whose files hold an average of its own."""
    named = replace(config, learning_rate=1.0) if isinstance(config.learning_rate, str) else config
    return _averages(make_optimizer([nn.Parameter(torch.zeros(2, 2))], named))


def _averages(optimizer: Optimizer) -> bool:
    return hasattr(optimizer, "eval")


@torch.no_grad()
def own_average(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor] | None:
    """The weights that a schedule-free optimizer is judged by and saved as (arXiv 2405.15682); None for any other.

    It trains others, and going from these to those and back rounds: the trained ones are put back bit for bit.
    """
    schedule_free: Any = optimizer
    if not _averages(optimizer):
        return None
    trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    schedule_free.eval()
    averaged = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    schedule_free.train()
    for name, parameter in parameters.items():
        parameter.copy_(trained[name])
    return averaged


def optimizer_of(
    parameters: Mapping[str, nn.Parameter],
    config: OptimizerConfig,
    network: NetworkConfig,
    scales: Mapping[str, float],
    seed: int = 0,
) -> Optimizer:
    """The optimizer of an adapter's parameters, in groups of equal factors on the learning rate.

    `scales` are factors by the beginning of names; each has groups of its own. Weights in bfloat16, which a full fine-tune may
    have, are rounded at random from the seed.
    """
    own = rate_factors(network, list(dict.fromkeys(name.partition("|")[0] for name in parameters)))
    plain: list[nn.Parameter] = []
    groups: dict[tuple[int, float], list[nn.Parameter]] = {
        (number, factor): [] for number, factor in enumerate(scales.values())
    }
    for name, parameter in parameters.items():
        start = next((number for number, start in enumerate(scales) if name.startswith(start)), -1)
        factor = own.get(name.partition("|")[0], 1.0) * (1.0 if start < 0 else list(scales.values())[start])
        if name.endswith(("|lora_B.weight", "|lora_up.weight")):
            factor *= network.loraplus_lr_ratio
        (plain if (start, factor) == (-1, 1.0) else groups.setdefault((start, factor), [])).append(parameter)
    scaled = [(factor, group) for (_, factor), group in groups.items() if group]
    if all(parameter.dtype == torch.float32 for parameter in parameters.values()):
        return make_optimizer(plain, config, scaled)
    every = [(factor, group) for factor, group in ((1.0, plain), *scaled) if group]
    made = [{"params": group, "lr": config.rate, RATE_SCALE: factor} for factor, group in every]
    return RoundedOptimizer(made, partial(make_optimizer, config=config), seed)


def set_learning_rate(optimizer: Optimizer, rate: float) -> float:
    """Give every group this rate, times its own factor; returns that of the first (Prodigy multiplies it by its estimate)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_SCALE, 1.0)
    return rate * float(optimizer.param_groups[0].get("d", 1.0))


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The L2 norm of all gradients, which are then scaled down to `limit` if it is larger; 0 sets no limit."""
    return nn.utils.clip_grad_norm_(list(parameters), limit if limit > 0 else float("inf"))
