"""What single modules have of their own: rank, alpha, learning rate."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from ..config.run import NetworkConfig
from .targets import matching

T = TypeVar("T", int, float)


def own_ranks(network: NetworkConfig, modules: Mapping[str, nn.Module]) -> tuple[dict[str, int], dict[str, float]]:
    """Returns ({path: rank}, {path: alpha}) of the modules that differ from `network.rank` and alpha. Raises ConfigError for a bad pattern."""
    if network.has_one_rank:
        return {}, {}
    default = network.rank if network.alpha is None else network.alpha
    by_pattern = matched("module_ranks", network.module_ranks, list(modules))
    alphas_by_pattern = matched("module_alphas", network.module_alphas, list(modules))
    ranks, alphas = {}, {}
    for path, module in modules.items():
        wide = is_wide(module)
        rank = by_pattern.get(path, (network.conv_rank if wide else 0) or network.rank)
        alpha = alphas_by_pattern.get(path, network.conv_alpha if wide else None)
        if alpha is None:
            alpha = rank if network.alpha is None else network.alpha
        if rank != network.rank:
            ranks[path] = rank
        if alpha != default:
            alphas[path] = alpha
    return ranks, alphas


def is_wide(module: nn.Module) -> bool:
    """Whether a module is a convolution larger than 1 x 1."""
    return max(getattr(module, "kernel_size", (1,))) > 1


def rate_factors(network: NetworkConfig, paths: Sequence[str]) -> dict[str, float]:
    """Returns {path: factor on the learning rate} of the modules that have one. Raises ConfigError for a bad pattern."""
    return matched("module_rates", network.module_rates, paths)


def matched(name: str, values: Mapping[str, T], paths: Sequence[str]) -> dict[str, T]:
    """Returns {path: the value of the last pattern that is found in it}. `name` is the option, for messages."""
    found: dict[str, T] = {}
    for pattern, value in values.items():
        found |= dict.fromkeys(matching(f"network.{name}", pattern, paths), value)
    return found
