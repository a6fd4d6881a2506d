"""The change of a module as a product of two matrices, for every kind of adapter that is one.

O output rows, I input columns times kernel elements, R rank. The change of a weight is scale * up_OR @ down_RI.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.host_formula import BIAS, kernel_of, needs_base

PEFT, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
"""Suffixes of (A, B) in the files of PEFT and diffusers, and of kohya."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The adapter of one module as a product of two fp32 matrices and a scale."""

    up_OR: Tensor
    down_RI: Tensor
    scale: float
    kernel: tuple[int, ...] = ()
    """(in channels, height, width) of a convolution; empty for a Linear."""

    @property
    def rank(self) -> int:
        """The inner dimension R."""
        return int(self.down_RI.shape[0])

    def energy(self) -> float:
        """Squared Frobenius norm of the change, as tr((up.T up)(down down.T)), without computing the product."""
        up, down = self.up_OR.double(), self.down_RI.double()
        return ((up.T @ up) * (down @ down.T)).sum().item() * self.scale**2


Pair = tuple[Tensor, Tensor]
"""(O, R) and (R, I): a matrix as a product."""


REMEDY = "merge it into the base (merge-base), then extract a LoRA from the two checkpoints"


def why_no_product(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What of a module, given as {suffix: shape}, cannot be written as two matrices, with the remedy; "" if nothing."""
    if kind := needs_base(shapes):
        return f"is of the kind {kind}, whose change depends on the base model's weights: {REMEDY}"
    if bias := next((name for name in BIAS if name in shapes), None):
        return f"changes a bias ({bias}), which a plain LoRA cannot hold: {REMEDY}"
    whole = next((name for name in ("diff", "w_norm") if name in shapes), None)
    if whole is not None:
        is_vector = len(shapes[whole]) < 2
        return (
            f"changes a vector ({whole} {shapes[whole]}), which a plain LoRA cannot hold: {REMEDY}" if is_vector else ""
        )
    names = set(shapes) - {"alpha"}
    has_pair = any({down, up} <= names for down, up in (PEFT, KOHYA))
    is_hadamard = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= names
    is_kronecker = all(w in names or {f"{w}_a", f"{w}_b"} <= names for w in ("lokr_w1", "lokr_w2"))
    is_whole = has_pair or is_hadamard or is_kronecker
    return (
        ""
        if is_whole
        else f"has {', '.join(sorted(names or {'alpha'}))} only, which is no whole adapter: the file is damaged"
    )


def factors_of(parts: Mapping[str, Tensor]) -> Factors:
    """The adapter of a module in fp32. Raises RuntimeError if its tensors cannot be multiplied.

    A LoHa of rank r has rank r^2, a LoKr the product of its factors' ranks, a full difference that of its shorter side.
    """
    alpha = parts["alpha"].item() if "alpha" in parts else None
    tensors = {name: tensor.float() for name, tensor in parts.items() if name != "alpha"}
    down_name, up_name = KOHYA if KOHYA[0] in parts else PEFT
    rank: int | None
    if "diff" in tensors:  # it takes the place of what else there is
        whole = tensors["diff"]
        pair, rank, kernel = _halves(whole.flatten(1)), None, _kernel(whole)
    elif down_name in tensors:
        down, up = tensors[down_name], tensors[up_name].flatten(1)
        if "lora_mid.weight" in tensors:
            down = kernel_of(down, tensors["lora_mid.weight"])
        pair, rank, kernel = (up, down.flatten(1)), down.shape[0], _kernel(down)
    elif "hada_w1_a" in tensors:
        (first, kernel), (second, _) = (_hadamard(tensors, number) for number in "12")
        pair, rank = _row_products(first, second), first[1].shape[0]
    else:
        first, second = (_factor(tensors, name) for name in ("lokr_w1", "lokr_w2"))
        ranks = [tensors[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
        pair, rank = (torch.kron(first[0], second[0]), torch.kron(first[1], second[1])), ranks[-1] if ranks else None
        inner = _kernel(tensors["lokr_w2"]) if "lokr_w2" in tensors else ()
        kernel = (inner[0] * first[1].shape[1], *inner[1:]) if inner else ()
    if pair[0].shape[1] != pair[1].shape[0]:
        raise RuntimeError(f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)} cannot be multiplied")
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return Factors(up_OR=pair[0], down_RI=pair[1], scale=scale, kernel=kernel)


def _kernel(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[1:]) if weight.ndim > 2 else ()


def _halves(matrix: Tensor) -> Pair:
    """A matrix as a product with the identity, of the rank of its shorter side."""
    rows, columns = matrix.shape
    return (matrix, torch.eye(columns)) if columns <= rows else (torch.eye(rows), matrix)


def _factor(tensors: Mapping[str, Tensor], name: str) -> Pair:
    return (
        _halves(tensors[name].flatten(1))
        if name in tensors
        else (tensors[f"{name}_a"], tensors[f"{name}_b"].flatten(1))
    )


def _hadamard(tensors: Mapping[str, Tensor], number: str) -> tuple[Pair, tuple[int, ...]]:
    """One of the two products that a LoHa multiplies element by element, and the kernel where it tells."""
    outer, inner = tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]
    if f"hada_t{number}" not in tensors:
        return (outer, inner), ()
    down = torch.einsum("i j k l, j r -> i r k l", tensors[f"hada_t{number}"], inner)
    return (outer.T, down.flatten(1)), _kernel(down)


def _row_products(first: Pair, second: Pair) -> Pair:
    """The element-wise product of two products: (sum_i a_i b_i) (sum_j c_j d_j) = sum_ij (a_i c_j) (b_i d_j)."""
    up = (first[0].unsqueeze(2) * second[0].unsqueeze(1)).flatten(1)
    down = (first[1].unsqueeze(1) * second[1].unsqueeze(0)).flatten(0, 1)
    return up, down
