"""How large a frozen base is on its device, block by block, read off its structure."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.model import packing_of
from ..weights.frozen import FrozenLinear
from ..weights.nf4 import BLOCK as NF4_BLOCK
from ..weights.nf4 import KIND as NF4
from ..weights.packing.layers import use_products
from ..weights.streaming import StreamPlan, StreamSettings, choose, find_blocks, needed, plain_parts

META = torch.device("meta")
GROUP = 128
"""Weights of one row that share a scale in int4 and int2 (optimum-quanto)."""
BITS = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}


@dataclass(frozen=True, kw_only=True)
class BaseSizes:
    """Bytes of a base as it lies on its device."""

    blocks: list[int]
    """What can be streamed, in the network's order."""
    fixed: int
    """What always stays: norms, biases, embeddings, layers outside of blocks."""

    @property
    def total(self) -> int:
        return self.fixed + sum(self.blocks)

    def plan(self, stream: StreamSettings | None) -> StreamPlan:
        """Which blocks are streamed. Raises ConfigError for a budget that is too small."""
        if stream is None:
            return StreamPlan((), 0)
        return choose(self.blocks, self.fixed, stream.budget)

    def on_device(self, stream: StreamSettings | None) -> int:
        """Bytes on the device. Raises ConfigError for a budget that is too small."""
        return needed(self.blocks, self.fixed, self.plan(stream))

    @property
    def least(self) -> int:
        """Bytes with all blocks streamed through a single buffer."""
        count = len(self.blocks)
        return needed(self.blocks, self.fixed, StreamPlan(tuple(range(count)), 1)) if count > 1 else self.total


def base_sizes(module: nn.Module, quantize: str = "none", segments: Collection[str] = ()) -> BaseSizes:
    """Sizes of a network that has its final dtypes; `quantize` is what is still to be done to it."""
    layers = find_blocks(module, segments)
    blocks = [sum(weight_bytes(module.get_submodule(path), quantize) for path in paths) for paths in layers.values()]
    streamed = {path for paths in layers.values() for path in paths}
    fixed = sum(
        weight_bytes(part, quantize) if name == "weight" else tensor_bytes(tensor)
        for path, part in module.named_modules()
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        if not (name == "weight" and path in streamed)
    )
    return BaseSizes(blocks=blocks, fixed=fixed)


def weight_bytes(layer: nn.Module, quantize: str) -> int:
    """Bytes of a layer's weight, quantized where that is done to it."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return quantized_bytes(weight, quantize) if _is_quantized(layer, quantize) else tensor_bytes(weight)


def _is_quantized(layer: nn.Module, quantize: str) -> bool:
    return quantize != "none" and isinstance(layer, nn.Linear)


def quantized_bytes(weight: Tensor, quantize: str) -> int:
    """Bytes of a (rows, columns) weight with its scales, which have two bytes in optimum-quanto and four in nf4, whose last block is filled up."""
    count, (rows, columns) = weight.numel(), weight.shape
    if quantize == NF4:
        return (NF4_BLOCK // 2 + 4) * -(-count // NF4_BLOCK)
    bits = BITS[quantize]
    if bits == 8:
        return count + 2 * rows
    groups = rows * -(-columns // GROUP)
    return count * bits // 8 + 2 * 2 * groups


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, of all its parts if it is quantized."""
    return sum(part.numel() * part.element_size() for part in plain_parts(tensor))


def pack_on_shapes(module: nn.Module, quantize: str, matmul: str, dtype: torch.dtype) -> str:
    """Have a network on the meta device multiply as `matmul` says, if that is what it is packed by; returns how it is still to be quantized."""
    if matmul == "off" or quantize != packing_of("none", matmul):
        return quantize
    use_products(module, matmul, dtype, META)
    return "none"


def stand_for_quantized(module: nn.Module) -> None:
    """Give every Linear of a network on the meta device a weight of one byte, which is cast when it is used, as a quantized one."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and type(part.weight) is nn.Parameter:
            part.weight = nn.Parameter(torch.empty_like(part.weight, dtype=torch.float8_e4m3fn), requires_grad=False)
            if type(part) is nn.Linear:
                part.__class__ = FrozenLinear
