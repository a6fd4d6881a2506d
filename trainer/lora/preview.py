"""A LoRA in training, laid over another network for a while: samples of a distilled model while its base is trained.

The other network computes what it does with the LoRA's file loaded. Low-rank paths are added in its layers' forward, so that no
weight is copied, as base LoRAs are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ..config.network import NetworkConfig
from ..errors import ConfigError
from ..weights.changes import Switch, take_off
from ..weights.streaming import device_of
from .base_lora import change_of, lay_change, weight_shape
from .patch import Patchable, match_modules


@contextmanager
def laid_over(network: Patchable, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which a network computes with the tensors of a LoRA file at strength 1. Raises ModelFileError for a file that does not
    fit it, and for DoRA."""
    switch, device = Switch(), device_of(network.module)
    try:
        for path, parts in match_modules(network, tensors).items():
            layer = network.module.get_submodule(path)
            lay_change(layer, change_of(parts, layer, 1.0, path).to(device), switch)
        yield
    finally:
        for module in network.module.modules():
            take_off(module, switch)


KINDS = ("lora", "loha", "lokr")
"""Kinds of adapters whose change does not depend on the weights that it is loaded over."""


def check_kind(network: NetworkConfig, what: str) -> None:
    """Raise ConfigError for an adapter that cannot be computed next to another model's weights. `what` names the other model's option."""
    problem = (
        f"network.kind = {network.kind!r}" if network.kind not in KINDS else "network.tucker" if network.tucker else ""
    )
    if problem:
        raise ConfigError(f"{what} does not go with {problem}, only with lora, loha and lokr: leave one of them out")


def check_alike(trained: nn.Module, other: nn.Module, paths: Sequence[str], what: str) -> None:
    """Raise ConfigError unless another network has the layers that are trained, in their shapes. `what` names its option."""
    layers = dict(other.named_modules())
    for path in paths:
        mine = weight_shape(trained.get_submodule(path), path)
        if path not in layers or weight_shape(layers[path], path) != mine:
            raise ConfigError(
                f"{what}: this model lacks {path} in the shape {mine}, which the LoRA changes: samples need a model of the same family and size"
            )
