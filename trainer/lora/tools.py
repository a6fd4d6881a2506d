"""Looking into LoRA files."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelFileError
from .host_formula import group_by_module, rank_of


@dataclass(frozen=True, kw_only=True)
class LoraReport:
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
    """{block: L2 norm of its factors}, the largest first."""
    zero: tuple[str, ...]
    """Tensors that are all zero: they change nothing."""
    broken: tuple[str, ...]
    """Tensors with NaN or infinite elements."""
    unknown: tuple[str, ...]
    """Tensors that are part of no known kind of adapter."""
    metadata: dict[str, str]


def inspect(path: Path) -> LoraReport:
    """Raises ModelFileError if the file cannot be read or holds no adapter."""
    tensors, metadata = _read(path)
    modules, unknown = group_by_module(tensors)
    if not modules:
        raise ModelFileError(f"{path} holds no LoRA tensors; it begins with {', '.join(sorted(tensors)[:3])}")
    norms: dict[str, float] = defaultdict(float)
    for key, parts in modules.items():
        norms[block_of(key)] += sum(
            t.float().square().sum().item() for name, t in parts.items() if name not in ("alpha", "dora_scale")
        )
    return LoraReport(
        kinds=_count(kind_of(parts) for parts in modules.values()),
        ranks=_count(rank_of(parts) for parts in modules.values()),
        alphas=_count(f"{parts['alpha'].item():g}" if "alpha" in parts else "none" for parts in modules.values()),
        dtypes=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        tensors=len(tensors),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        block_norms={name: value**0.5 for name, value in sorted(norms.items(), key=lambda item: -item[1])},
        zero=tuple(sorted(key for key, t in tensors.items() if not key.endswith(".alpha") and not t.any())),
        broken=tuple(sorted(key for key, t in tensors.items() if not torch.isfinite(t).all())),
        unknown=tuple(sorted(unknown)),
        metadata=metadata,
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged or no safetensors file ({error})") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}") from error


def _count(values: Any) -> dict[Any, int]:
    counts: dict[Any, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def kind_of(parts: dict[str, Tensor]) -> str:
    names = " ".join(parts)
    base = "loha" if "hada" in names else "lokr" if "lokr" in names else "lora"
    return f"{base} + dora_scale" if "dora_scale" in parts else base


def block_of(key: str) -> str:
    """The key up to its first number: "transformer.transformer_blocks.12", "lora_unet_down_blocks_1"."""
    import re

    match = re.match(r"^.*?\d+", key)
    return match[0] if match else key.rsplit(".", 1)[0]


def to_text(report: LoraReport, path: Path) -> str:
    """For a person."""
    lines = [
        f"{path.name}: {_words(report.kinds)} modules, rank {_words(report.ranks)}, alpha {_words(report.alphas)}",
        f"{report.tensors} tensors, {', '.join(report.dtypes)}, {report.bytes:,} bytes",
    ]
    for title, keys in (("all zero", report.zero), ("NaN or infinite", report.broken), ("unknown", report.unknown)):
        if keys:
            lines.append(f"{title}: {len(keys)} tensors, first {keys[0]}")
    lines += ["norm per block:"] + [f"  {norm:9.4f}  {block}" for block, norm in report.block_norms.items()]
    lines += ["metadata:"] + [f"  {key}: {_short(value)}" for key, value in sorted(report.metadata.items())]
    return "\n".join(lines)


def _words(counts: dict[Any, int]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _short(value: str, most: int = 100) -> str:
    text = json.dumps(value, ensure_ascii=False)[1:-1]
    return text if len(text) <= most else text[:most] + "…"
