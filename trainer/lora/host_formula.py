"""The change of each weight that ComfyUI 0.33 computes from a LoRA file, in fp32.

It follows the arithmetic of ComfyUI's `weight_adapter` (LoRA, LoHa, LoKr, weight_decompose), so that saved files can be
checked against it and checkpoints can be compared without ComfyUI. O out, I in, r rank, K kernel elements.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import ModelFileError

SUFFIXES = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "alpha", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip
"""Names of the tensors of all supported adapters: plain LoRA, DoRA, LoHa and LoKr."""

SPELLINGS = {
    ".lora_A.default.weight": "lora_A.weight",
    ".lora_B.default.weight": "lora_B.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
}
"""{other ends of keys that ComfyUI takes: the suffix that they mean}. PEFT and older versions of diffusers write them."""
FOREIGN = (
    "lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm", "oft_blocks", "oft_diag", "rescale",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight", "set_weight", "reshape_weight",
)  # fmt: skip
"""Tensors of kinds of adapters that ComfyUI loads and this project does not read."""
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


def foreign_kinds(keys: Iterable[str]) -> list[str]:
    """The kinds of tensors among these keys that belong to adapters which are known and not read here, sorted."""
    return sorted({kind for key in keys for kind in FOREIGN if key.endswith("." + kind)})


def refuse_foreign(keys: Iterable[str], name: str) -> None:
    """Raise ModelFileError if a file holds a kind of adapter that is not read here: half of it would be another change."""
    if kinds := foreign_kinds(keys):
        raise ModelFileError(
            f"{name} holds a kind of adapter that is not read here ({', '.join(kinds)}): plain LoRA, DoRA, LoHa and LoKr are. Load it in ComfyUI, "
            "save the checkpoint there, and extract a LoRA from it"
        )


def refuse_broken(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelFileError if a tensor of a LoRA has NaN or infinite numbers, which make every image black."""
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelFileError(
            f"{name}: {len(broken)} tensors have NaN or infinite numbers, first {broken[0]}: the training diverged; use an earlier checkpoint"
        )


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
    change = low_rank_change(parts)
    if skipped or len(change) != len(base):
        change = change[skipped : skipped + len(base)]
    change = change.reshape(base.shape)
    if "dora_scale" in parts:
        change = _decompose(parts["dora_scale"], base, change)
    return strength * change


def needs_whole_weight(parts: Mapping[str, Tensor], rows: int) -> bool:
    """Whether the change of a row depends on the other rows, as in a DoRA with one scale per input column."""
    return "dora_scale" in parts and parts["dora_scale"].shape[0] != rows


BY_ROW = ("lora_B.weight", "lora_up.weight", "hada_w1_a", "hada_w2_a", "dora_scale")
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
    """The change before DoRA's gain, flattened to (O, I K). Raises ModelFileError for an incomplete adapter."""
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
            rank = parts[f"{name}_b"].shape[0]
            factors.append(parts[f"{name}_a"] @ parts[f"{name}_b"])
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
