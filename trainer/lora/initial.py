"""Initial values of an adapter: a function of the seed and the module's path alone."""

import math

import torch
from torch import Tensor, nn

from ..seeding import generator
from ..weights.frozen import stored_weight
from .adapted import PeftLayer, row_norms


@torch.no_grad()
def materialise(path: str, layer: PeftLayer, seed: int, init: str) -> None:
    """Replace the meta parameters of a layer by fp32 ones with their initial values."""
    base = layer.get_base_layer()
    for part in layer.modules():
        if isinstance(part, nn.Conv2d) and part is not base:
            part.__class__ = (
                nn.Conv2d
            )  # PEFT copies the base layer's class, and a FrozenConv2d gives its weight no gradient
    device = stored_weight(base).device
    for group in layer.adapter_layer_names:
        holder = getattr(layer, group)
        for name, parameter in list(holder.named_parameters()):
            value = _initial(group, parameter, base, generator(seed, "init", path, group), init)
            owner, _, leaf = name.rpartition(".")
            target = holder.get_submodule(owner) if owner else holder
            setattr(target, leaf, nn.Parameter(value.to(device))) if owner else holder.update(
                {leaf: nn.Parameter(value.to(device))}
            )


def _initial(group: str, like: nn.Parameter, base: nn.Module, source: torch.Generator, init: str) -> Tensor:
    """The initial values of a parameter: LoRA as in PEFT, LoHa and LoKr as in LyCORIS. The change of the weight is zero."""
    shape = tuple(like.shape)
    if group == "lora_magnitude_vector":
        return row_norms(base).reshape(shape)
    if group in ("lora_B", "hada_w2_a", "lokr_w2", "lokr_w2_b"):
        return torch.zeros(shape)
    if group.startswith("hada"):  # LyCORIS: N(0, 1), and N(0, 0.1) for the first factor
        return torch.randn(shape, generator=source) * (0.1 if group == "hada_w1_a" else 1.0)
    if init == "gaussian":  # as PEFT has it
        return torch.randn(shape, generator=source) / shape[0]
    bound = 1 / math.sqrt(math.prod(shape[1:]))  # kaiming_uniform with a = sqrt(5)
    return (torch.rand(shape, generator=source) * 2 - 1) * bound
