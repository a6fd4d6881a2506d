"""The change of each weight that ComfyUI 0.33 computes from a LoRA file, in fp32.

It follows the arithmetic of ComfyUI's `weight_adapter` (LoRA, LoHa, LoKr, OFT, BOFT, GLoRA, weight_decompose), so that saved
files can be checked against it and checkpoints can be compared without ComfyUI; also where it is odd: the strength of a rotation
counts twice, and a `rescale` of OFT is not used. O out, I in, r rank, K kernel elements, b size of a block.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelFileError
from ..types import Value

Parts = Mapping[str, Tensor]
"""{suffix: tensor} of one module."""
WHOLE = ("oft_blocks", "a1.weight", "hada_t1")
"""Tensors of adapters whose change of a row is only computed together with the other rows."""
REPLACES = ("set_weight", "diff", "w_norm")
"""Tensors that take the place of an adapter of the same module, the first first."""

SUFFIXES = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "alpha", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "lora_mid.weight", "hada_t1", "hada_t2", "diff", "diff_b", "set_weight", "w_norm", "b_norm", "oft_blocks", "rescale",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight",
)  # fmt: skip
"""Names of the tensors of all adapters that ComfyUI applies."""

SPELLINGS = {
    ".lora_A.default.weight": "lora_A.weight",
    ".lora_B.default.weight": "lora_B.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_A": "lora_A.weight",
    ".lora_B": "lora_B.weight",
}
"""{other ends of keys that ComfyUI takes: the suffix that they mean}. PEFT and older versions of diffusers write them."""
BIAS = ("diff_b", "b_norm")
"""Tensors that change the bias of a module."""
OF_THE_BASE = {
    "dora_scale": "DoRA",
    "oft_blocks": "OFT",
    "a1.weight": "GLoRA",
    "set_weight": "whole weight (set_weight)",
}
"""{tensor: kind of adapter whose change can only be computed together with the base model's weight}."""
EMBEDDINGS = "bundle_emb."
"""Start of the keys of embeddings that OneTrainer puts into a LoRA file. ComfyUI leaves them out, and so does this project."""

RANKED = ("lora_A.weight", "lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""Factors whose first dimension is the rank."""


def group_by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Returns ({module key: {suffix: tensor}}, keys that belong to no supported adapter)."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        module, suffix = split_key(key)
        if suffix is not None:
            modules.setdefault(module, {})[suffix] = tensor
        elif not key.startswith(EMBEDDINGS):
            unknown.append(key)
    return modules, unknown


def split_key(key: str) -> tuple[str, str | None]:
    """Returns (module key, suffix) of a tensor's key; (key, None) if it belongs to no supported adapter."""
    suffix = next((s for s in SUFFIXES if key.endswith("." + s)), None)
    if suffix is not None:
        return key[: -len(suffix) - 1], suffix
    end = next((end for end in SPELLINGS if key.endswith(end)), None)
    return (key, None) if end is None else (key[: -len(end)], SPELLINGS[end])


def refuse_broken(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelFileError if a tensor of a LoRA has NaN or infinite numbers, which make every image black."""
    broken = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise ModelFileError(
            f"{name}: {len(broken)} tensors have NaN or infinite numbers, first {broken[0]}: the training diverged; use an earlier checkpoint"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite. torch cannot ask this of the 8-bit floats that some files hold."""
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """The rank of a module's adapter; 0 where both factors of a LoKr are full matrices."""
    for name in RANKED:
        if name in parts:
            return int(parts[name].shape[0])
    return 0


def weight_change(
    parts: Mapping[str, Tensor], base: Tensor, strength: float = 1.0, span: tuple[int, int] | None = None
) -> Tensor:
    """The patched weight minus the base weight, in the base's shape: fp32, or float64 for a float64 base.

    `base` may be a part of the rows of a module's weight; `span` is then (index of its first row, rows of the module).
    Raises ModelFileError for an incomplete adapter.
    """
    base = base if base.dtype == torch.float64 else base.float()
    if span is not None and span != (0, len(base)):
        parts, skipped = _of_rows(parts, span[0], span[0] + len(base))
    else:
        skipped = 0
    parts = {name: tensor.to(base.dtype) for name, tensor in parts.items()}
    other = _other_change(parts, base, strength)
    if other is not None:
        return other
    change = low_rank_change(parts)
    if skipped or len(change) != len(base):
        change = change[skipped : skipped + len(base)]
    change = change.reshape(base.shape)
    if "dora_scale" in parts:
        change = _decompose(parts["dora_scale"], base, change)
    return strength * change


def _other_change(parts: Mapping[str, Tensor], base: Tensor, strength: float) -> Tensor | None:
    """The change by an adapter that is no product of small matrices; None for one that is. Raises ModelFileError."""
    whole = next((name for name in REPLACES if name in parts), None)
    if whole is not None and parts[whole].shape != base.shape:
        raise ModelFileError(
            f"{whole} has shape {tuple(parts[whole].shape)}, the weight {tuple(base.shape)}: it was made for a model of another size"
        )
    if whole == "set_weight":
        return parts[whole] - base  # at any strength
    if whole is not None:
        return strength * parts[whole]
    if "oft_blocks" in parts:
        change, scale = rotated(parts, base, strength), 1.0
    elif "a1.weight" in parts:
        change, rank = generalised(parts, base)
        scale = strength * _scale(parts["alpha"].item() if "alpha" in parts else None, rank)
    else:
        return None
    if "dora_scale" in parts:
        raise ModelFileError(
            "a dora_scale on OFT, BOFT or GLoRA is not read here: merge the file in ComfyUI, and extract a LoRA"
        )
    return scale * change


def bias_change(parts: Mapping[str, Tensor], strength: float = 1.0) -> Tensor | None:
    """The change of a module's bias, in fp32; None if the file changes none."""
    name = next((name for name in BIAS if name in parts), None)
    return None if name is None else strength * parts[name].float()


def needs_base(parts: Mapping[str, Any]) -> str:
    """The kind of an adapter, {suffix: tensor or shape}, whose change depends on the weights below it: "DoRA", "OFT", "BOFT", "GLoRA" …;
    "" for any other."""
    kind = next((kind for part, kind in OF_THE_BASE.items() if part in parts), "")
    return "BOFT" if kind == "OFT" and is_butterfly(parts) else kind


def is_butterfly(parts: Mapping[str, Any]) -> bool:
    """Whether an adapter, {suffix: tensor or shape}, is a BOFT: its blocks have the dimension of the factors too."""
    blocks = parts.get("oft_blocks", ())
    return len(getattr(blocks, "shape", blocks)) == 4


def undecomposed(parts: Mapping[str, Value]) -> dict[str, Value]:
    """An adapter, {suffix: tensor or shape}, without DoRA's scale."""
    return {name: part for name, part in parts.items() if name != "dora_scale"}


def changes_weight(parts: Iterable[str]) -> bool:
    """Whether the tensors of a module change its weight, and not its bias alone."""
    return bool(set(parts) - {*BIAS, "alpha"})


def needs_whole_weight(parts: Mapping[str, Tensor], rows: int) -> bool:
    """Whether the change of a row depends on the other rows, as in a DoRA with one scale per input column, or in a rotation."""
    by_columns = "dora_scale" in parts and parts["dora_scale"].shape[0] != rows
    return by_columns or any(name in parts for name in WHOLE)


BY_ROW = ("lora_B.weight", "lora_up.weight", "hada_w1_a", "hada_w2_a", "dora_scale", *REPLACES)
"""Factors whose first dimension is that of the weight's rows."""


def _of_rows(parts: Mapping[str, Tensor], first: int, last: int) -> tuple[dict[str, Tensor], int]:
    """Returns (the adapter of the rows first to last - 1, number of additional rows before them)."""
    cut = {name: tensor[first:last] if name in BY_ROW else tensor for name, tensor in parts.items()}
    inner = parts.get("lokr_w2", parts.get("lokr_w2_a"))
    if inner is None:
        return cut, 0
    height = inner.shape[0]  # row i of kron(w1, w2) is the product of rows i // height and i % height
    low, high = first // height, -(-last // height)
    cut |= {name: parts[name][low:high] for name in ("lokr_w1", "lokr_w1_a") if name in parts}
    return cut, first - low * height


def low_rank_change(parts: Mapping[str, Tensor]) -> Tensor:
    """The change of an adapter that needs no base weight, or before DoRA's gain, flattened to (O, I K).

    Raises ModelFileError for an incomplete adapter, and for one whose change depends on the base weight.
    """
    whole = next((parts[name] for name in REPLACES[1:] if name in parts), None)
    if whole is not None:
        return whole.reshape(len(whole), -1)
    alpha = parts["alpha"].item() if "alpha" in parts else None
    down = parts.get("lora_A.weight", parts.get("lora_down.weight"))
    up = parts.get("lora_B.weight", parts.get("lora_up.weight"))
    if down is not None and up is not None:
        if "lora_mid.weight" in parts:
            down = kernel_of(down, parts["lora_mid.weight"])
        return up.flatten(1) @ down.flatten(1) * _scale(alpha, down.shape[0])
    with suppress(KeyError):  # one of the factors is missing
        if "hada_w1_a" in parts:
            first, second = (_hadamard_factor(parts, number) for number in "12")
            return (first * second).flatten(1) * _scale(alpha, parts["hada_w1_b"].shape[0])
        if any(name.startswith("lokr") for name in parts):
            return _kronecker(parts, alpha)
    if kind := needs_base(undecomposed(parts)):
        raise ModelFileError(
            f"the change of a LoRA file of the kind {kind} depends on the base model's weights: merge the file into the base (merge-base), and extract a LoRA"
        )
    raise ModelFileError(f"an adapter of {sorted(parts)} is incomplete: the LoRA file is damaged")


def changed_shape(parts: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Returns (rows, columns) of the weight that an adapter changes, without computing anything; None where it does not tell.

    Raises ModelFileError for an incomplete adapter, or factors that do not fit each other.
    """
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ModelFileError(f"alpha holds {parts['alpha'].numel()} numbers instead of one: the LoRA file is damaged")
    if not changes_weight(parts) or needs_base(undecomposed(parts)):
        return None
    try:
        made = low_rank_change({name: tensor.to("meta") for name, tensor in parts.items() if name != "alpha"})
    except RuntimeError as error:
        raise ModelFileError(
            f"the factors of an adapter do not fit each other ({error}): the LoRA file is damaged"
        ) from error
    return made.shape[0], made[0].numel()


def _hadamard_factor(parts: Mapping[str, Tensor], number: str) -> Tensor:
    outer, inner = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
    return tucker(parts[f"hada_t{number}"], inner, outer) if f"hada_t{number}" in parts else outer @ inner


def _scale(alpha: float | None, rank: int | None) -> float:
    """alpha / rank; 1 where ComfyUI does not know one of them."""
    return 1.0 if alpha is None or rank is None else alpha / rank


def _kronecker(parts: Mapping[str, Tensor], alpha: float | None) -> Tensor:
    """kron(w1, w2). ComfyUI knows a rank, and therefore uses alpha, only if one of the factors is itself factorised."""
    rank = None
    factors = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            factors.append(parts[name])
        else:
            outer, inner = parts[f"{name}_a"], parts[f"{name}_b"]
            rank = inner.shape[0]
            factors.append(outer @ inner)
    first, second = factors
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second) * _scale(alpha, rank)


def _decompose(dora_scale: Tensor, base: Tensor, change: Tensor) -> Tensor:
    """Returns (base + change) * dora_scale / |base| - base for each output row: ComfyUI divides by the norm of the base alone.

    A dora_scale with one number per input column is divided by the norm of the patched weight's columns instead.
    """
    patched = base + change
    if dora_scale.shape[0] == base.shape[0]:
        norm = torch.linalg.vector_norm(base.flatten(1), dim=1).reshape(-1, *[1] * (base.ndim - 1))
    else:
        norm = torch.linalg.vector_norm(patched.transpose(0, 1).flatten(1), dim=1).reshape(
            1, -1, *[1] * (base.ndim - 2)
        )
    return patched * (dora_scale.reshape(norm.shape) / (norm + torch.finfo(torch.float32).eps)) - base


def rotated(parts: Parts, base: Tensor, strength: float) -> Tensor:
    """The change of a weight by OFT (blocks of shape (k, b, b)) or BOFT ((m, k, b, b)). Raises ModelFileError.

    The blocks hold Q = A - A^T, whose Cayley transform (I + Q)(I - Q)^-1 rotates the rows of the weight.
    """
    blocks = parts["oft_blocks"]
    alpha = parts["alpha"].item() if "alpha" in parts else 0.0
    turning = _cayley(blocks, alpha)
    if blocks.ndim == 3:
        count, size = blocks.shape[:2]
        step = (turning - torch.eye(size, dtype=base.dtype, device=base.device)) * strength
        grouped = base.reshape(count, size, *base.shape[1:])
        return strength * torch.einsum("k n m, k n ... -> k m ...", step, grouped).reshape(base.shape)
    if "alpha" not in parts:
        raise ModelFileError(
            "a BOFT without alpha, which ComfyUI does not apply: train or convert it with its constraint stored"
        )
    return strength * (_butterfly(turning, base, strength, parts.get("rescale")) - base)


def _cayley(blocks: Tensor, limit: float) -> Tensor:
    """(I + Q)(I - Q)^-1 of Q = A - A^T, shortened to the norm `limit` where that is above 0 and exceeded."""
    skew = blocks - blocks.transpose(-1, -2)
    if limit > 0:
        norm = torch.linalg.vector_norm(skew) + 1e-8
        if norm > limit:
            skew = skew * limit / norm
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return (eye + skew) @ (eye - skew).inverse()


def _butterfly(turning: Tensor, base: Tensor, strength: float, rescale: Tensor | None) -> Tensor:
    """The weight after all factors of a BOFT: factor i pairs rows that are 2^i b / 2 apart."""
    factors, _, size = turning.shape[:3]
    eye = torch.eye(size, dtype=base.dtype, device=base.device)
    rows = base
    for number in range(factors):
        block = turning[number] * strength + (1 - strength) * eye
        apart = 2**number * (size // 2)
        rest = base.shape[1:]
        rows = rows.reshape(-1, 2, apart, *rest).transpose(1, 2).reshape(-1, size, *rest)
        rows = torch.einsum("b i j, b j ... -> b i ...", block, rows)
        rows = rows.reshape(-1, apart, 2, *rest).transpose(1, 2).reshape(base.shape)
    return rows if rescale is None else rows * rescale


def generalised(parts: Parts, base: Tensor) -> tuple[Tensor, int]:
    """Returns (the change of a weight by GLoRA before alpha / rank, the rank). Older files hold the pairs the other way round."""
    a1, a2, b1, b2 = (parts[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    is_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    rank = a1.shape[0]
    if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]:
        is_old = is_old and a2.shape[0] == base.shape[0] == base.shape[1]
        rank = rank if is_old else a2.shape[0]
    if is_old:
        return (b2 @ b1 + base.flatten(1) @ a2 @ a1).reshape(base.shape), rank
    inner = torch.einsum("o i ..., i j -> o j ...", torch.einsum("o i ..., i j -> o j ...", base, a1), a2)
    return inner.reshape(base.shape) + (b1 @ b2).reshape(base.shape), rank


def tucker(core: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """A convolution kernel (O, I, h, w) of a core (r, r, h, w) and its matrices (r, I) and (r, O)."""
    return torch.einsum("i j k l, j r, i p -> p r k l", core, inner, outer)


def kernel_of(down: Tensor, mid: Tensor) -> Tensor:
    """LoRA's first matrix (r, I, h, w) of a convolution that is divided in two, (r, I, 1, 1) and (r, r, h, w)."""
    return torch.einsum("j i, r j k l -> r i k l", down.flatten(1), mid)
