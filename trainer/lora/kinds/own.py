"""Adapters that PEFT has no class for, or none whose files ComfyUI reads: a layer of our own, with the interface of PEFT's."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapted import NAME, dense_weight

Values = Mapping[str, Tensor]
"""{tensor name: value} of one layer."""


class OwnLayer(nn.Module):
    """A frozen Linear or Conv2d with an adapter. Its parameters have the names and shapes that they have in files, unless `in_file` says otherwise."""

    cast_input_dtype_enabled = False

    def __init__(self, base: nn.Module, path: str, rank: int, alpha: float) -> None:
        """`path` is the module's, for messages. Raises ConfigError for a layer that cannot have this adapter."""
        super().__init__()
        self.base_layer = base
        weight = cast(Tensor, base.weight)
        self.shape = tuple(weight.shape)
        """(O, I) of a Linear, (O, I, K, K) of a convolution."""
        self.r = {NAME: rank}
        self.scaling = {NAME: alpha / rank}
        self._disable_adapters = False
        self.dtype: torch.dtype | None = None
        """That of the adapter's products; None takes the input's."""
        shapes = self.shapes(path, rank)
        self.adapter_layer_names = tuple(sorted(name.removesuffix(".weight") for name in shapes))
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(shape))
            if name.endswith(".weight"):
                holder = nn.Module()
                holder.weight = parameter
                setattr(self, name.removesuffix(".weight"), nn.ModuleDict({NAME: holder}))
            else:
                setattr(self, name, nn.ParameterDict({NAME: parameter}))

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The trainable tensors of the layer. Raises ConfigError."""
        raise NotImplementedError

    def initial(self, group: str, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """Initial values of a tensor, by its name without ".weight". The change of the weight is zero."""
        return torch.zeros(shape)

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """The layer's output for x with the adapter. `values` are fp32."""
        raise NotImplementedError

    def change(self, values: Values, base: Tensor) -> Tensor:
        """What the adapter adds to a base weight, in the shape and dtype of `base`."""
        raise NotImplementedError

    def in_file(self, values: Values) -> dict[str, Tensor]:
        """The tensors of the file, with their alpha."""
        return {**values, "alpha": torch.tensor(self.scaling[NAME] * self.r[NAME], dtype=torch.float32)}

    def from_file(self, tensors: Values, alpha: float | None) -> dict[str, Tensor]:
        """The parameters for a file's tensors without its alpha."""
        return dict(tensors)

    @property
    def disable_adapters(self) -> bool:
        """Whether the layer computes what its base does."""
        return self._disable_adapters

    def get_base_layer(self) -> nn.Module:
        """The frozen layer."""
        return self.base_layer

    def values(self) -> dict[str, Tensor]:
        """The parameters by the names that they have in files."""
        found: dict[str, Tensor] = {}
        for group in self.adapter_layer_names:
            part = getattr(self, group)[NAME]
            found[f"{group}.weight" if isinstance(part, nn.Module) else group] = getattr(part, "weight", part)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The output with the adapter, or without where it is disabled."""
        x = x if self.dtype is None else x.to(self.dtype)
        if self.disable_adapters:
            return cast(Tensor, self.base_layer(x))
        return self.adapted(x, self.values())

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return len(self.shape) > 2

    def without_bias(self, out: Tensor) -> tuple[Tensor, Tensor | float]:
        """Returns (the base's output without its bias, that bias so that it can be added again)."""
        bias = self.base_layer.bias
        if bias is None:
            return out, 0.0
        bias = cast(Tensor, bias).to(out.dtype)
        bias = bias.reshape(-1, 1, 1) if self.is_conv else bias
        return out - bias, bias

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """A weight of the base's shape applied to x as the base applies its own, without a bias."""
        if not self.is_conv:
            return F.linear(x, weight.to(x.dtype))
        base = cast(nn.Conv2d, self.base_layer)
        return F.conv2d(x, weight.to(x.dtype), None, base.stride, base.padding, base.dilation, base.groups)

    def dense(self) -> Tensor:
        """The base's weight, fp32."""
        return dense_weight(self.base_layer)


def kaiming(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """Uniform within 1 / sqrt(width of the input), as torch's Linear begins."""
    return (torch.rand(shape, generator=source) * 2 - 1) / math.sqrt(math.prod(shape[1:]))


def own_kind(make: Any) -> type[OwnLayer] | None:
    """The class of a kind that has a layer of ours; None for PEFT's."""
    return make if isinstance(make, type) and issubclass(make, OwnLayer) else None
