"""Trained norms: the weight and the bias of a LayerNorm or GroupNorm get a difference, beside the adapter of the other modules."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..adapted import NAME
from .own import OwnLayer, Values

NORMS = (nn.LayerNorm, nn.GroupNorm)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight."""
    return isinstance(module, NORMS) and module.weight is not None


class Norm(OwnLayer):
    """A norm that computes (W + D) n + b + d, with n the normalised input (LyCORIS' train_norm). Files hold D as w_norm and d as b_norm, without a scale."""

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The differences of the weight and of the bias, if there is one."""
        names = ("w_norm", "b_norm") if self.base_layer.bias is not None else ("w_norm",)
        return dict.fromkeys(names, self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The output with the differences, in the dtype of the base's."""
        out = cast(Tensor, self.base_layer(x))
        return out if self.disable_adapters else out + self._difference(x, self.values()).to(out.dtype)

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """The same for any values."""
        return cast(Tensor, self.base_layer(x)) + self._difference(x, values)

    def _difference(self, x: Tensor, values: Values) -> Tensor:
        """D n + d, at the adapter's strength."""
        base = self.base_layer
        if isinstance(base, nn.GroupNorm):
            normal, shape = F.group_norm(x, base.num_groups, eps=base.eps), (-1, *[1] * (x.ndim - 2))
        else:
            layer = cast(nn.LayerNorm, base)
            normal, shape = F.layer_norm(x, layer.normalized_shape, eps=layer.eps), self.shape
        weight = (values["w_norm"] * self.scaling[NAME]).to(normal.dtype).reshape(shape)
        change = normal * weight
        if "b_norm" not in values:
            return change
        return change + (values["b_norm"] * self.scaling[NAME]).to(normal.dtype).reshape(shape)

    def change(self, values: Values, base: Tensor) -> Tensor:
        """D; the bias has its own tensor in files, as it is."""
        return values["w_norm"].to(base)

    def in_file(self, values: Values) -> dict[str, Tensor]:
        """Without an alpha."""
        return dict(values)
