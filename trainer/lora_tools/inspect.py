"""Inspecting LoRA files: adapter types, ranks, norms, and tensors that are damaged or unknown."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import ModelFileError, reads
from ..lora.host_formula import RANKED, is_butterfly, split_key
from ..lora.kinds.foreign import foreign_kinds, no_adapter, refuse_foreign
from ..storage.atomic import bits_of
from ..storage.tensor_file import FORMATS, TensorFile
from .stated_alpha import KEY as STATED

V = TypeVar("V")
NAMES = {kind: str(dtype).removeprefix("torch.") for dtype, kind in FORMATS.items()}


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What a LoRA file holds."""

    kinds: dict[str, int]
    """{kind: number of modules}."""
    ranks: dict[int, int]
    """{rank: number of modules}."""
    alphas: dict[str, int]
    """{alpha, or "none": number of modules}."""
    dtypes: tuple[str, ...]
    tensors: int
    bytes: int
    block_norms: dict[str, float]
    """{block: L2 norm of its matrices}, the largest first."""
    zero: tuple[str, ...]
    """Keys of tensors that are all zero and therefore have no effect."""
    broken: tuple[str, ...]
    """Keys of tensors with NaN or infinite elements."""
    unknown: tuple[str, ...]
    """Keys of tensors that belong to no supported adapter."""
    metadata: dict[str, str]


@reads(lambda source, *_, **__: source)
def inspect(path: Path) -> LoraReport:
    """Read all tensors of a LoRA file and report on them. Raises ModelFileError if it cannot be read or holds no adapter."""
    file = TensorFile(path)
    modules, unknown = modules_of(file)
    if not modules:
        refuse_foreign(unknown, str(path))
        raise ModelFileError(f"{path} {no_adapter(file.layout)}")
    norms: dict[str, float] = defaultdict(float)
    zero, broken, alphas = [], [], []
    for key, parts in modules.items():
        for name, tensor_key in parts.items():
            tensor = file.get(tensor_key).float()
            if not torch.isfinite(tensor).all():
                broken.append(tensor_key)
            elif name != "alpha" and not tensor.any():
                zero.append(tensor_key)
            if name not in ("alpha", "dora_scale"):
                norms[block_of(key)] += tensor.square().sum().item()
        alphas.append(f"{file.get(parts['alpha']).item():g}" if "alpha" in parts else "none")
    return LoraReport(
        kinds=_count(kind_of(shapes_of(file, parts)) for parts in modules.values()),
        ranks=_count(rank_of_shapes(file, parts) for parts in modules.values()),
        alphas=_count(alphas),
        dtypes=tuple(sorted({NAMES.get(kind, kind) for kind, _ in file.layout.values()})),
        tensors=len(file.layout),
        bytes=sum(bits_of(kind) * math.prod(shape) // 8 for kind, shape in file.layout.values()),
        block_norms={name: value**0.5 for name, value in sorted(norms.items(), key=lambda item: -item[1])},
        zero=tuple(sorted(zero)),
        broken=tuple(sorted(broken)),
        unknown=tuple(sorted(unknown)),
        metadata=file.metadata,
    )


def modules_of(file: TensorFile) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns ({module key: {suffix: key of the tensor}}, keys that belong to no supported adapter), from the header alone."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for tensor in file.layout:
        module, suffix = split_key(tensor)
        if suffix is None:
            unknown.append(tensor)
        else:
            modules.setdefault(module, {})[suffix] = tensor
    return modules, unknown


def rank_of_shapes(file: TensorFile, parts: Mapping[str, str]) -> int:
    """The rank of a module's adapter; 0 where both factors of a LoKr are full matrices."""
    return next((file.layout[parts[name]][1][0] for name in RANKED if name in parts), 0)


def input_width(file: TensorFile, parts: Mapping[str, str]) -> int:
    """Number of input channels of a module; 0 if the adapter does not tell."""
    return weight_size(shapes_of(file, parts))[1]


def shapes_of(file: TensorFile, parts: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Returns {suffix: shape} of a module's tensors."""
    return {name: file.layout[tensor][1] for name, tensor in parts.items()}


def weight_size(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Returns (rows, input channels) of the weight that an adapter of these tensors changes; 0 for what they do not tell."""
    for name in ("diff", "set_weight"):
        if len(shapes.get(name, ())) > 1:
            return shapes[name][0], shapes[name][1]
    for down, up in (
        ("lora_A.weight", "lora_B.weight"),
        ("lora_down.weight", "lora_up.weight"),
        ("hada_w1_b", "hada_w1_a"),
    ):
        if down in shapes and up in shapes:
            return shapes[up]["hada_t1" in shapes], shapes[down][1]
    factors = [shapes.get(whole) or (*shapes.get(f"{whole}_a", (0,))[:1], *shapes.get(f"{whole}_b", (0, 0))[1:2]) for whole in ("lokr_w1", "lokr_w2")]  # fmt: skip
    return math.prod(one[0] for one in factors), math.prod(one[1] for one in factors)


def _count(values: Iterable[V]) -> dict[V, int]:
    """Returns {value: how often it occurs}, the most frequent first."""
    counts: dict[V, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


KINDS = {
    "set_weight": "whole weight", "w_norm": "norm", "diff": "full difference", "oft_blocks": "oft", "a1.weight": "glora",
    "hada_t1": "loha (tucker)", "hada_w1_a": "loha", "lokr_w1": "lokr", "lokr_w1_a": "lokr", "lora_mid.weight": "lora (tucker)",
    "diff_b": "bias", "b_norm": "bias",
}  # fmt: skip
"""{tensor: kind of adapter}, the telling ones first; what is left is a plain LoRA."""


def kind_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The kind of a module's adapter, by {suffix: shape} of its tensors."""
    names = set(shapes)
    is_pair = any(name.endswith(("lora_A.weight", "lora_down.weight")) for name in names)
    kind = next((KINDS[name] for name in KINDS if name in names and not (is_pair and KINDS[name] == "bias")), "lora")
    kind = "boft" if is_butterfly(shapes) else kind
    return f"{kind} + dora_scale" if "dora_scale" in names else kind


def block_of(key: str) -> str:
    """The key up to its first number: "transformer.transformer_blocks.12", "lora_unet_down_blocks_1"."""
    import re

    match = re.match(r"^.*?\d+", key)
    return match[0] if match else key.rsplit(".", 1)[0]


def to_text(report: LoraReport, path: Path) -> str:
    """The report as plain text."""
    lines = [
        f"{path.name}: {_counts(report.kinds)} modules, rank {_counts(report.ranks)}, alpha {_counts(report.alphas)}",
        f"{report.tensors} tensors, {', '.join(report.dtypes)}, {report.bytes:,} bytes",
    ]
    if STATED in report.metadata and set(report.alphas) == {"none"}:
        lines.append(
            "alpha stands in the metadata only: diffusers scales by it, ComfyUI does not read it and scales by 1; convert, resize and merge write it into the tensors"
        )
    for title, keys in (("all zero", report.zero), ("NaN or infinite", report.broken), ("unknown", report.unknown)):
        if keys:
            lines.append(f"{title}: {len(keys)} tensors, first {keys[0]}")
    if foreign := foreign_kinds(report.unknown):
        lines.append(f"of a kind that is not read here: {', '.join(foreign)}")
    lines += ["norm per block:"] + [f"  {norm:9.4f}  {block}" for block, norm in report.block_norms.items()]
    lines += ["metadata:"] + [f"  {key}: {_short(value)}" for key, value in sorted(report.metadata.items())]
    return "\n".join(lines)


def _counts(counts: Mapping[V, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _short(value: str, most: int = 100) -> str:
    text = json.dumps(value, ensure_ascii=False)[1:-1]
    return text if len(text) <= most else text[:most] + "…"
