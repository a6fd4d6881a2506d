"""What a host computes from a LoRA file: the change of each weight, in fp32, as ComfyUI 0.33 does it.

Written out from the arithmetic of ComfyUI's `weight_adapter` (LoRA, LoHa, LoKr, weight_decompose), so that saving can be
checked against it and checkpoints can be compared without ComfyUI. O out, I in, r rank, K kernel elements.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ModelFileError

SUFFIXES = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "alpha", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip

RANKED = ("lora_A.weight", "lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Factors whose first dimension is the rank."""


def group_by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """({module key: {suffix: tensor}}, keys that belong to no known kind of adapter)."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        module, suffix = split_key(key)
        if suffix is None:
            unknown.append(key)
        else:
            modules.setdefault(module, {})[suffix] = tensor
    return modules, unknown


def split_key(key: str) -> tuple[str, str | None]:
    """(module key, suffix), or (key, None) for a tensor of no known kind of adapter."""
    suffix = next((s for s in SUFFIXES if key.endswith("." + s)), None)
    return (key, None) if suffix is None else (key[: -len(suffix) - 1], suffix)


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """Inner width; 0 where both factors of a LoKr are full."""
    for name in RANKED:
        if name in parts:
            return int(parts[name].shape[0])
    return 0


def weight_change(
    parts: Mapping[str, Tensor], base: Tensor, strength: float = 1.0, span: tuple[int, int] | None = None
) -> Tensor:
    """patched weight - base weight in the base's shape, fp32 (float64 for a float64 base, to measure with).

    `base` may be some rows of a module's weight; `span` then says which row of the module its first one is, and how many the
    module has. Raises ModelFileError on an incomplete adapter.
    """
    base = base if base.dtype == torch.float64 else base.float()
    if span is not None and span != (0, len(base)):
        parts, skipped = _of_rows(parts, span[0], span[0] + len(base))
    else:
        skipped = 0
    parts = {name: tensor.to(base.dtype) for name, tensor in parts.items()}
    change = low_rank_change(parts)
    if skipped or len(change) != len(base):
        change = change[skipped : skipped + len(base)]
    change = change.reshape(base.shape)
    if "dora_scale" in parts:
        change = _decompose(parts["dora_scale"], base, change)
    return strength * change


def needs_whole_weight(parts: Mapping[str, Tensor], rows: int) -> bool:
    """Whether no row's change is known without the others: a DoRA whose scales are those of input columns."""
    return "dora_scale" in parts and parts["dora_scale"].shape[0] != rows


BY_ROW = ("lora_B.weight", "lora_up.weight", "hada_w1_a", "hada_w2_a", "dora_scale")
"""Factors whose first dimension is the rows of the weight."""


def _of_rows(parts: Mapping[str, Tensor], first: int, last: int) -> tuple[dict[str, Tensor], int]:
    """(adapter of rows first to last - 1, how many rows too many stand before them)."""
    cut = {name: tensor[first:last] if name in BY_ROW else tensor for name, tensor in parts.items()}
    inner = parts.get("lokr_w2", parts.get("lokr_w2_a"))
    if inner is None:
        return cut, 0
    height = inner.shape[0]  # row i of kron(w1, w2) is made of rows i // height and i % height
    low, high = first // height, -(-last // height)
    cut |= {name: parts[name][low:high] for name in ("lokr_w1", "lokr_w1_a") if name in parts}
    return cut, first - low * height


def low_rank_change(parts: Mapping[str, Tensor]) -> Tensor:
    """The change before DoRA's gain, flattened to (O, I K). Raises ModelFileError on an incomplete adapter."""
    alpha = parts["alpha"].item() if "alpha" in parts else None
    down = parts.get("lora_A.weight", parts.get("lora_down.weight"))
    up = parts.get("lora_B.weight", parts.get("lora_up.weight"))
    if down is not None and up is not None:
        return up.flatten(1) @ down.flatten(1) * _scale(alpha, down.shape[0])
    if "hada_w1_a" in parts:
        first, second = (parts[f"hada_{w}_a"] @ parts[f"hada_{w}_b"] for w in ("w1", "w2"))
        return first * second * _scale(alpha, parts["hada_w1_b"].shape[0])
    if any(name.startswith("lokr") for name in parts):
        return _kronecker(parts, alpha)
    raise ModelFileError(f"an adapter of {sorted(parts)} is incomplete: the LoRA file is damaged")


def _scale(alpha: float | None, rank: int | None) -> float:
    """alpha / rank; 1 where either is unknown to the host."""
    return 1.0 if alpha is None or rank is None else alpha / rank


def _kronecker(parts: Mapping[str, Tensor], alpha: float | None) -> Tensor:
    """kron(w1, w2). The host knows a rank, and so uses alpha, only if a factor is itself factorised."""
    rank = None
    factors = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            factors.append(parts[name])
        else:
            rank = parts[f"{name}_b"].shape[0]
            factors.append(parts[f"{name}_a"] @ parts[f"{name}_b"])
    first, second = factors
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second) * _scale(alpha, rank)


def _decompose(dora_scale: Tensor, base: Tensor, change: Tensor) -> Tensor:
    """(base + change) * dora_scale / |base| - base, per output row; the host divides by the norm of the base alone.

    A dora_scale of one number per input column is divided by the norm of the patched weight's columns instead.
    """
    patched = base + change
    if dora_scale.shape[0] == base.shape[0]:
        norm = torch.linalg.vector_norm(base.flatten(1), dim=1).reshape(-1, *[1] * (base.ndim - 1))
    else:
        norm = torch.linalg.vector_norm(patched.transpose(0, 1).flatten(1), dim=1).reshape(
            1, -1, *[1] * (base.ndim - 2)
        )
    return patched * (dora_scale.reshape(norm.shape) / (norm + torch.finfo(torch.float32).eps)) - base
