"""A layer with an adapter, and the weight that the adapter changes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..weights.changes import changes_of
from ..weights.frozen import dense, replace_module, stored_weight

NAME = "default"
"""PEFT's name of the only adapter."""


class PeftLayer(Protocol):
    """What is used of PEFT's layers, which have no type annotations."""

    forward: Callable[..., Tensor]
    r: dict[str, int]
    scaling: dict[str, float]
    disable_adapters: bool
    _disable_adapters: bool
    cast_input_dtype_enabled: bool
    adapter_layer_names: Sequence[str]
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_dropout: nn.ModuleDict
    lora_magnitude_vector: nn.ModuleDict

    _modules: dict[str, nn.Module]
    start: tuple[Tensor, Tensor] | None

    def get_base_layer(self) -> nn.Module:
        """The frozen Linear or Conv2d."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules in the layer."""
        ...

    def train(self, mode: bool) -> object:
        """Switch dropout."""
        ...


def matrix(part: nn.ModuleDict) -> Tensor:
    """The adapter's matrix in a part of a PEFT layer."""
    return cast(Tensor, part[NAME].weight)


def is_plain_lora(layer: PeftLayer) -> bool:
    """Whether a PEFT layer computes W x + s B A x and nothing else."""
    return hasattr(layer, "lora_A") and NAME not in layer.lora_magnitude_vector


def layer_parameters(layer: PeftLayer) -> dict[str, nn.Parameter]:
    """Returns {tensor name without the adapter's name: parameter} of one PEFT layer, sorted by name."""
    parameters = {}
    for group in layer.adapter_layer_names:
        for name, parameter in getattr(layer, group).named_parameters():
            # lora_A["default"].weight, lora_magnitude_vector["default"].weight, lokr_w1["default"]
            parameters[group + name.removeprefix(NAME)] = parameter
    return dict(sorted(parameters.items()))


def take_off_adapter(root: nn.Module) -> None:
    """Have the layers of a network that carry an adapter compute without it again, as the objects that they were before."""
    for path, part in list(root.named_modules()):
        if hasattr(part, "adapter_layer_names"):
            replace_module(root, path, cast(PeftLayer, part).get_base_layer())


def dense_weight(base: nn.Module) -> Tensor:
    """The frozen weight that a Linear or Conv2d computes with, as fp32: dequantized, multiplied by its scale if it has one, and
    with the changes of base LoRAs."""
    weight = own_weight(base)
    for change in changes_of(base):
        weight = weight + change.dense()
    return weight


def own_weight(base: nn.Module) -> Tensor:
    """The same without base LoRAs."""
    return dense(stored_weight(base), torch.float32, getattr(base, "scale", None)).detach()


def row_norms(base: nn.Module) -> Tensor:
    """L2 norm of each output row of the dense weight (O,), fp32, on the CPU; ones for a weight that is only a shape."""
    norms = torch.linalg.vector_norm(dense_weight(base).flatten(1), dim=1)
    return torch.ones(norms.shape) if norms.is_meta else norms.cpu()
