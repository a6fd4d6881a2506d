"""Kinds that change a weight by products with itself or by whole tensors: GLoRA, full difference, (IA)^3, and LoRA in Tucker form."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapted import NAME
from .own import OwnLayer, Values, kaiming


def _one_by_one(matrix: Tensor) -> Tensor:
    """A matrix as the kernel of a convolution."""
    return matrix.reshape(*matrix.shape[:2], 1, 1)


class Glora(OwnLayer):
    """W + s (W a1 a2 + b1 b2), with s = alpha / rank (GLoRA, arXiv 2306.07967, in LyCORIS' form): the input is changed, and a LoRA added.

    a1 (I, r), a2 (r, I), b1 (O, r), b2 (r, I) or (r, I, K, K). a1 and b1 begin at zero.
    """

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The four matrices; for a convolution they are kernels."""
        rows, columns, *kernel = self.shape
        one = (1,) * len(kernel)
        return {
            "a1.weight": (columns, rank, *one),
            "a2.weight": (rank, columns, *one),
            "b1.weight": (rows, rank, *one),
            "b2.weight": (rank, columns, *kernel),
        }

    def initial(self, group: str, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """a2 and b2 as Linears begin."""
        return kaiming(shape, source) if group in ("a2", "b2") else torch.zeros(shape)

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """W (x + s a1 a2 x) + s b1 b2 x."""
        a1, a2, b1, b2 = (values[f"{name}.weight"].to(x.dtype) for name in ("a1", "a2", "b1", "b2"))
        scale = self.scaling[NAME]
        if self.is_conv:
            base = cast(nn.Conv2d, self.base_layer)
            inner = F.conv2d(F.conv2d(x, a2), a1 * scale)
            outer = F.conv2d(F.conv2d(x, b2, None, base.stride, base.padding, base.dilation), b1 * scale)
        else:
            inner = F.linear(F.linear(x, a2), a1 * scale)
            outer = F.linear(F.linear(x, b2), b1 * scale)
        return cast(Tensor, self.base_layer(x + inner)) + outer

    def change(self, values: Values, base: Tensor) -> Tensor:
        """s (W a1 a2 + b1 b2); W a1 a2 mixes the channels of the input."""
        a1, a2, b1, b2 = (values[f"{name}.weight"].to(base).flatten(1) for name in ("a1", "a2", "b1", "b2"))
        mixed = torch.einsum("o i ..., i j -> o j ...", base, a1 @ a2)
        return self.scaling[NAME] * (mixed + (b1 @ b2).reshape(base.shape))

    def from_file(self, tensors: Values, alpha: float | None) -> dict[str, Tensor]:
        """The file's scale goes into a1 and b1."""
        rank = tensors["a2.weight"].shape[0]
        factor = (1.0 if alpha is None else alpha / rank) / self.scaling[NAME]
        return {
            name: tensor * factor if name in ("a1.weight", "b1.weight") else tensor for name, tensor in tensors.items()
        }


class Difference(OwnLayer):
    """W + D with D as large as W: everything a weight can become. It has no rank and no alpha."""

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The difference."""
        return {"diff": self.shape}

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """W x + D x."""
        return cast(Tensor, self.base_layer(x)) + self.apply_weight(x, values["diff"])

    def change(self, values: Values, base: Tensor) -> Tensor:
        """D."""
        return values["diff"].to(base)

    def in_file(self, values: Values) -> dict[str, Tensor]:
        """Without an alpha."""
        return dict(values)


class Ia3(OwnLayer):
    """The weight (1 + v) W with a factor v for each row (arXiv 2205.05638). ComfyUI reads no files of it, so that they hold the difference v W."""

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """One number for each row."""
        return {"ia3": (self.shape[0],)}

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """(1 + v) W x + b."""
        out, bias = self.without_bias(cast(Tensor, self.base_layer(x)))
        factor = (1 + values["ia3"]).to(x.dtype)
        return out * (factor.reshape(-1, 1, 1) if self.is_conv else factor) + bias

    def change(self, values: Values, base: Tensor) -> Tensor:
        """V W."""
        return values["ia3"].to(base).reshape(-1, *[1] * (base.ndim - 1)) * base

    def in_file(self, values: Values) -> dict[str, Tensor]:
        """The whole difference."""
        return {"diff": self.change(values, self.dense().cpu())}


class Tucker(OwnLayer):
    """LoRA of a convolution in three kernels: down (r, I, 1, 1), mid (r, r, K, K), up (O, r, 1, 1) (Tucker-2, arXiv 1511.06530; LyCORIS' use_tucker)."""

    def shapes(self, path: str, rank: int) -> dict[str, tuple[int, ...]]:
        """The three kernels."""
        rows, columns, *kernel = self.shape
        return {
            "lora_down.weight": (rank, columns, 1, 1),
            "lora_mid.weight": (rank, rank, *kernel),
            "lora_up.weight": (rows, rank, 1, 1),
        }

    def initial(self, group: str, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        """The last one is zero."""
        return torch.zeros(shape) if group == "lora_up" else kaiming(shape, source)

    def adapted(self, x: Tensor, values: Values) -> Tensor:
        """W x + s up mid down x; the middle one has the base's stride and padding."""
        down, mid, up = (values[f"lora_{name}.weight"].to(x.dtype) for name in ("down", "mid", "up"))
        base = cast(nn.Conv2d, self.base_layer)
        hidden = F.conv2d(F.conv2d(x, down), mid, None, base.stride, base.padding, base.dilation)
        return cast(Tensor, base(x)) + F.conv2d(hidden, up * self.scaling[NAME])

    def change(self, values: Values, base: Tensor) -> Tensor:
        """S up mid down as one kernel."""
        down, mid, up = (values[f"lora_{name}.weight"].to(base) for name in ("down", "mid", "up"))
        product = torch.einsum("o p, p q k l, q i -> o i k l", up.flatten(1), mid, down.flatten(1))
        return self.scaling[NAME] * product

    def from_file(self, tensors: Values, alpha: float | None) -> dict[str, Tensor]:
        """The file's scale goes into the last kernel."""
        factor = (1.0 if alpha is None else alpha / tensors["lora_down.weight"].shape[0]) / self.scaling[NAME]
        return {**tensors, "lora_up.weight": tensors["lora_up.weight"] * factor}
