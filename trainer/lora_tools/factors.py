"""A LoRA file module by module, as pairs of matrices: what resizing, merging and extracting work on.

O out, I in times kernel elements, R rank. The change of a weight is scale * up_OR @ down_RI.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, ModelFileError
from ..storage.atomic import stream_tensors
from ..storage.tensor_file import FORMATS, TensorFile, TensorHeader
from .inspect import modules_of

PEFT, KOHYA = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata that is wrong once the tensors change."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The adapter of one module. Tensors are fp32."""

    up_OR: Tensor
    down_RI: Tensor
    scale: float
    kernel: tuple[int, ...] = ()
    """(in channels, height, width) of a convolution; empty for a Linear."""

    @property
    def rank(self) -> int:
        return int(self.down_RI.shape[0])

    def energy(self) -> float:
        """Squared Frobenius norm of the change, without making it: tr((up' up)(down down'))."""
        up, down = self.up_OR.double(), self.down_RI.double()
        return ((up.T @ up) * (down @ down.T)).sum().item() * self.scale**2


@dataclass(kw_only=True)
class LoraFile:
    """An open LoRA file. `modules` is {module key: {suffix: tensor key}}; nothing is read until asked for."""

    file: TensorFile
    modules: dict[str, dict[str, str]]

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def metadata(self) -> dict[str, str]:
        return self.file.metadata

    def factors(self, key: str) -> Factors:
        parts = self.file.gather(self.modules[key])
        down, up = (parts[name].float() for name in self.names(key))
        scale = parts["alpha"].item() / down.shape[0] if "alpha" in parts else 1.0
        kernel = tuple(down.shape[1:]) if down.ndim > 2 else ()
        if up.ndim < 2 or down.ndim < 2 or up.flatten(1).shape[1] != down.shape[0]:
            raise ModelFileError(
                f"{self.path}: {key} is damaged, {tuple(up.shape)} and {tuple(down.shape)} cannot be multiplied"
            )
        if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
            raise ModelFileError(f"{self.path}: {key} has NaN or infinite numbers; `inspect` lists all of them")
        return Factors(up_OR=up.flatten(1), down_RI=down.flatten(1), scale=scale, kernel=kernel)

    def names(self, key: str) -> tuple[str, str]:
        """Suffixes of (down, up) in this file."""
        return KOHYA if KOHYA[0] in self.modules[key] else PEFT

    def dtype(self, key: str) -> torch.dtype:
        """The wider number format of the module's factors."""
        kinds = {self.file.layout[self.modules[key][name]][0] for name in self.names(key)}
        return max((dtype for dtype, kind in FORMATS.items() if kind in kinds), key=lambda dtype: dtype.itemsize)


def open_lora(path: Path) -> LoraFile:
    """Raises ModelFileError unless every tensor of the file belongs to a plain LoRA."""
    file = TensorFile(path)
    modules, unknown = modules_of(file)
    if not modules:
        raise ModelFileError(f"{path} holds no LoRA tensors; it begins with {', '.join(sorted(file.layout)[:3])}")
    if unknown:
        raise ModelFileError(f"{path} has {len(unknown)} tensors of an unknown kind, first {sorted(unknown)[0]}")
    other = sorted(key for key, parts in modules.items() if not _is_plain(parts))
    if other:
        raise ModelFileError(
            f"{path}: {len(other)} of its {len(modules)} modules are no plain LoRA, first {other[0]} ({', '.join(sorted(modules[other[0]]))}). "
            "Merge it into the base (merge-base), then extract a LoRA from the two checkpoints"
        )
    return LoraFile(file=file, modules=modules)


def _is_plain(parts: Mapping[str, str]) -> bool:
    return set(parts) - {"alpha"} in (set(PEFT), set(KOHYA))


@dataclass(frozen=True, kw_only=True)
class Written:
    """Tensors of one module, ready to be written; alpha says the scale."""

    factors: Factors
    dtype: torch.dtype
    names: tuple[str, str] = PEFT
    alpha: bool = True
    """Store alpha; a file without it is read at scale 1."""

    def tensors(self, key: str) -> dict[str, Tensor]:
        down, up = self.factors.down_RI, self.factors.up_OR
        if self.factors.kernel:
            ones = [1] * (len(self.factors.kernel) - 1)
            down, up = down.reshape(-1, *self.factors.kernel), up.reshape(*up.shape, *ones)
        stored = {self.names[0]: down.to(self.dtype), self.names[1]: up.to(self.dtype)}
        if self.alpha:
            stored["alpha"] = torch.tensor(self.factors.scale * self.factors.rank, dtype=torch.float32)
        return {f"{key}.{name}": tensor.contiguous() for name, tensor in stored.items()}


def write_lora(path: Path, modules: Mapping[str, Written], metadata: Mapping[str, str]) -> None:
    """Raises RunError."""
    tensors: dict[str, Tensor] = {}
    for key, written in modules.items():
        tensors |= written.tensors(key)
    layout: TensorHeader = {name: (FORMATS[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_tensors(path, layout, tensors.__getitem__, metadata)


def new_dtype(name: str, old: torch.dtype) -> torch.dtype:
    """Raises ConfigError unless `name` is auto (the old one) or a known number format."""
    if name == "auto":
        return old
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def extended(metadata: Mapping[str, str], modules: Mapping[str, Written], tool: str, facts: object) -> dict[str, str]:
    """The old metadata with the new rank and alpha, and one more entry in `loom.history` that says what was done."""
    kept = {name: value for name, value in metadata.items() if name not in STALE}
    ranks = {written.factors.rank for written in modules.values()}
    alphas = {round(written.factors.scale * written.factors.rank, 6) for written in modules.values()}
    kept["ss_network_dim"] = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    kept["ss_network_alpha"] = f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic"
    kept["loom.history"] = json.dumps([*_history(kept), {"tool": tool, "facts": facts}], sort_keys=True)
    return kept


def _history(metadata: Mapping[str, str]) -> list[object]:
    try:
        entries = json.loads(metadata.get("loom.history", "[]"))
    except ValueError:
        return []
    return entries if isinstance(entries, list) else []
