"""A LoRA file as one pair of matrices per module, for resizing, merging, extracting and converting.

LoHa, LoKr, the Tucker form and full differences are products of two matrices too, of a larger rank (`products.py`). O output rows, I input columns times kernel elements, R rank. The change of a weight is scale * up_OR @ down_RI.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config.aliases import log_note
from ..errors import ConfigError, ModelFileError, some
from ..lora.host_formula import EMBEDDINGS
from ..lora.kinds.foreign import no_adapter, refuse_foreign
from ..storage.atomic import stream_tensors
from ..storage.tensor_file import FORMATS, TensorFile, TensorHeader
from ..weights.devices import DTYPES
from .inspect import kind_of, modules_of, shapes_of
from .products import KOHYA, PEFT, Factors, factors_of, why_no_product
from .stated_alpha import KEY as STATED
from .stated_alpha import stated_alpha

__all__ = ["KOHYA", "PEFT", "Factors"]

STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata that is no longer valid when the tensors change."""


@dataclass(kw_only=True)
class PlainLora:
    """An open file with LoRA modules only. Tensors are read when they are requested."""

    file: TensorFile
    modules: dict[str, dict[str, str]]
    """{module key: {suffix: key of the tensor}}."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata."""
        return self.file.metadata

    def factors(self, key: str) -> Factors:
        """Read the adapter of a module. Raises ModelFileError if its tensors do not match or are not finite."""
        try:
            factors = factors_of(self.file.gather(self.modules[key]))
            alpha = None if "alpha" in self.modules[key] else stated_alpha(self.metadata, key, factors.rank)
            factors = factors if alpha is None else replace(factors, scale=alpha / factors.rank)
        except RuntimeError as error:
            raise ModelFileError(f"{self.path}: {key} is damaged, {error}") from error
        is_finite = torch.isfinite(factors.up_OR).all() and torch.isfinite(factors.down_RI).all()
        if not (is_finite and math.isfinite(factors.scale)):
            raise ModelFileError(f"{self.path}: {key} has NaN or infinite numbers; `inspect` lists all of them")
        return factors

    def names(self, key: str) -> tuple[str, str]:
        """The suffixes of (A, B) of a module in this file."""
        parts = self.modules[key]
        return KOHYA if KOHYA[0] in parts or (PEFT[0] not in parts and key.startswith("lora_")) else PEFT

    def dtype(self, key: str) -> torch.dtype:
        """The widest dtype of a module's tensors besides alpha."""
        stored = {self.file.layout[tensor][0] for name, tensor in self.modules[key].items() if name != "alpha"}
        return max((dtype for dtype, name in FORMATS.items() if name in stored), key=lambda dtype: dtype.itemsize)

    def others(self) -> list[str]:
        """The modules that are no plain LoRA, but whose change is the same product of two matrices."""
        return [key for key, parts in self.modules.items() if not _is_plain(parts)]


def open_lora(path: Path) -> PlainLora:
    """Open a LoRA file. Raises ModelFileError unless every tensor belongs to a plain LoRA (not DoRA, LoHa or LoKr)."""
    file = TensorFile(path)
    modules, unknown = modules_of(file)
    refuse_foreign(unknown, str(path))
    embeddings = [key for key in unknown if key.startswith(EMBEDDINGS)]
    unknown = sorted(set(unknown) - set(embeddings))
    if embeddings:
        log_note(f"{path.name}: {len(embeddings)} bundled embeddings are left out, as ComfyUI does: {some(embeddings)}")
    modules = {_of_unet(key): parts for key, parts in modules.items()}
    if not modules:
        raise ModelFileError(f"{path} {no_adapter(file.layout)}")
    if unknown:
        raise ModelFileError(f"{path} has {len(unknown)} tensors of an unknown kind, first {sorted(unknown)[0]}")
    for key, parts in sorted(modules.items()):
        if reason := why_no_product(shapes_of(file, parts)):
            raise ModelFileError(f"{path}: {key} {reason}")
    lora = PlainLora(file=file, modules=modules)
    if others := lora.others():
        log_note(
            f"{path.name}: {len(others)} of {len(modules)} modules are no plain LoRA ({kind_of(shapes_of(file, modules[others[0]]))}); they are read as the LoRA of the same change"
        )
    return lora


def _of_unet(key: str) -> str:
    """The key of a UNet's module as diffusers writes it, where PEFT has saved the adapter itself (base_model.model.…)."""
    path = key.removeprefix("base_model.model.")
    is_peft = path != key and path.startswith(("down_blocks.", "mid_block.", "up_blocks."))
    return f"unet.{path}" if is_peft else key


def _is_plain(parts: Mapping[str, str]) -> bool:
    return set(parts) - {"alpha"} in (set(PEFT), set(KOHYA))


@dataclass(frozen=True, kw_only=True)
class Written:
    """A module as it will be written to a file: its matrices, dtype and tensor names."""

    factors: Factors
    dtype: torch.dtype
    names: tuple[str, str] = PEFT
    alpha: bool = True
    """Whether alpha is stored. Without it a file is read with scale 1."""

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Returns {key of the tensor: tensor} of the module `key`."""
        down, up = self.factors.down_RI, self.factors.up_OR
        if self.factors.kernel:
            ones = [1] * (len(self.factors.kernel) - 1)
            down, up = down.reshape(-1, *self.factors.kernel), up.reshape(*up.shape, *ones)
        stored = {self.names[0]: down.to(self.dtype), self.names[1]: up.to(self.dtype)}
        if self.alpha:
            stored["alpha"] = torch.tensor(self.factors.scale * self.factors.rank, dtype=torch.float32)
        return {f"{key}.{name}": tensor.contiguous() for name, tensor in stored.items()}


def write_lora(path: Path, modules: Mapping[str, Written], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file atomically. Raises RunError."""
    tensors: dict[str, Tensor] = {}
    for key, written in modules.items():
        tensors |= written.tensors(key)
    layout: TensorHeader = {name: (FORMATS[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_tensors(path, layout, tensors.__getitem__, metadata)


def new_dtype(name: str, old: torch.dtype) -> torch.dtype:
    """The dtype that `name` selects; "auto" is `old`. Raises ConfigError for an unknown name."""
    if name == "auto":
        return old
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def extended(metadata: Mapping[str, str], modules: Mapping[str, Written], tool: str, facts: object) -> dict[str, str]:
    """The old metadata with the new rank and alpha, and with an entry in `loom.history` about the tool and its settings."""
    kept = {name: value for name, value in metadata.items() if name not in STALE}
    kept.pop(STATED, None)  # what it says of alpha is part of the tensors now
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
