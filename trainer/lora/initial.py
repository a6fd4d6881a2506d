"""Initial values of an adapter: a function of the seed and the module's path alone."""

import math

import torch
from torch import Tensor, nn

from ..config.network import LOFTQ
from ..errors import ConfigError
from ..seeding import generator
from ..weights.changes import Switch, lay
from ..weights.frozen import stored_weight
from ..weights.quantize import original_of
from .adapted import NAME, PeftLayer, dense_weight, is_plain_lora, matrix, own_weight, row_norms
from .base_lora import LowRank
from .kinds.own import OwnLayer

FROM_WEIGHT = ("singular", "pissa", "olora", LOFTQ)
"""Values of network.init that are made of the weight."""
WITH_PRODUCT = ("pissa", "olora", LOFTQ)
"""Those with which B A does not begin at zero, so that it is taken off."""


@torch.no_grad()
def materialise(path: str, layer: PeftLayer, seed: int, init: str) -> None:
    """Replace the meta parameters of a layer by fp32 ones with their initial values. Raises ConfigError for a rank that W has not."""
    base = layer.get_base_layer()
    layer.start = None
    for part in layer.modules():
        if isinstance(part, nn.Conv2d) and part is not base:
            part.__class__ = (
                nn.Conv2d
            )  # PEFT copies the base layer's class, and a FrozenConv2d gives its weight no gradient
    device = stored_weight(base).device
    found = _from_weight(path, layer, seed, init) if init in FROM_WEIGHT and is_plain_lora(layer) else {}
    for group in layer.adapter_layer_names:
        holder = getattr(layer, group)
        for name, parameter in list(holder.named_parameters()):
            source = generator(seed, "init", path, group)
            if isinstance(layer, OwnLayer):
                value = layer.initial(group, tuple(parameter.shape), source)
            elif group in found:
                value = found[group].reshape(parameter.shape).contiguous()
            else:
                value = _initial(group, parameter, base, source, init)
            owner, _, leaf = name.rpartition(".")
            target = holder.get_submodule(owner) if owner else holder
            setattr(target, leaf, nn.Parameter(value.to(device))) if owner else holder.update(
                {leaf: nn.Parameter(value.to(device))}
            )
    if init in WITH_PRODUCT and is_plain_lora(layer) and (found or device.type == "meta" or init != LOFTQ):
        layer.start = (matrix(layer.lora_A).detach().clone(), matrix(layer.lora_B).detach().clone())
        if init == LOFTQ and found:  # the quantized base with its correction is what is trained on
            down, up = layer.start
            lay(base, LowRank(down=down, up=up.flatten(1), scale=layer.scaling[NAME]), Switch())


def with_start(layer: PeftLayer, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Both matrices of LoRA's change, where the product that it began with is not part of it.

    B A - B0 A0 = B (A - A0) + (B - B0) A0: of twice the rank, and without the difference of two large products.
    """
    if layer.start is None:
        return down, up
    first_down, first_up = (one.to(down) for one in layer.start)
    return torch.cat([down - first_down, first_down]), torch.cat([up, up - first_up], dim=1)


def _from_weight(path: str, layer: PeftLayer, seed: int, init: str) -> dict[str, Tensor]:
    """Initial values that are made of the weight, as {"lora_A": (r, I K), "lora_B": (O, r)} or the first alone."""
    weight, rank = dense_weight(layer.get_base_layer()).flatten(1), layer.r[NAME]
    if rank > min(weight.shape):
        raise ConfigError(
            f"network.init = {init!r}: {path} has rank {rank} and a weight of {tuple(weight.shape)}; use a rank up to {min(weight.shape)} there"
        )
    if weight.is_meta:
        return {}
    if init == LOFTQ:
        rounded = own_weight(layer.get_base_layer())
        original = original_of(layer.get_base_layer(), rounded.device)
        if original is None:  # a layer that is not quantized: nothing is lost
            return {}
        weight = (original - rounded).flatten(1)
    if init == "olora":  # arXiv 2406.01775: the first columns of Q, and Q^T W
        rows = torch.linalg.qr(weight[:, :rank]).Q
        return {"lora_A": rows.T @ weight, "lora_B": rows}
    left, values, right = top_singular(weight, rank, generator(seed, "init", path, "singular vectors"))
    if init == "singular":
        return {"lora_A": right}
    root = (values / layer.scaling[NAME]).sqrt()  # PiSSA, arXiv 2404.02948; LoftQ, arXiv 2310.08659, algorithm 1
    return {"lora_A": root[:, None] * right, "lora_B": left * root}


def top_singular(weight: Tensor, rank: int, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (U (O, r), S (r,), V^T (r, I)) of the largest singular values, by subspace iteration (arXiv 0909.4061, algorithm 4.4).

    It is exact where the rank is near that of the weight.
    """
    width = min(rank + 8, *weight.shape)
    basis = weight @ torch.randn(weight.shape[1], width, generator=source).to(weight)
    for _ in range(8):
        basis = torch.linalg.qr(weight.T @ torch.linalg.qr(basis).Q).Q
        basis = weight @ basis
    basis = torch.linalg.qr(basis).Q
    left, values, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ left[:, :rank], values[:rank], right[:rank]


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
