"""The file of a full fine-tune: the base model's own, with the trained weights in it, as ComfyUI loads it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..base_model import Base
from ..config.network import WHOLE
from ..config.run import TrainConfig
from ..errors import RunError
from ..families.common.family import WritesOriginal
from ..families.common.keymap import KeyMap, Part, to_diffusers, to_native
from ..families.common.modules import AS_STORED
from ..storage.atomic import stream_tensors
from ..storage.tensor_file import FORMATS, TensorFile, TensorHeader
from ..weights.devices import DTYPES
from .network import our_key

Values = Mapping[str, Tensor]
"""{"module path|name": weight}, as `Adapter.parameters` names them."""


@dataclass(kw_only=True)
class ModelFile:
    """How a base with trained weights is written. A whole checkpoint keeps its VAE and text encoders as they are; of a diffusers folder
    it is the denoiser alone, under the names of the original file where the family knows them, else diffusers', which ComfyUI loads too.
    """

    base: Base
    dtype: torch.dtype
    """dtype of the denoiser's tensors in the file."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Metadata that is known before training."""

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        """The base's weights by our keys, mapped from its files."""
        return self._module.state_dict()

    @cached_property
    def _module(self) -> nn.Module:
        return self.base.family.load_denoiser(self.base.source, self.base.variant, AS_STORED).module

    @cached_property
    def _file(self) -> TensorFile | None:
        """The base's single file; None for a diffusers folder."""
        return None if self.base.source.is_diffusers else TensorFile(self.base.source.path)

    @cached_property
    def _keys(self) -> KeyMap:
        family, source = self.base.family, self.base.source
        if not source.is_diffusers:
            found = family.key_map(source.shapes)
        elif isinstance(family, WritesOriginal):
            found = family.original_keys(cast(Any, self._module).config, self._stored)
        else:
            found = {key: Part(key) for key in self._stored}
        return {key: part for key, part in found.items() if key in self._stored}

    @cached_property
    def _parts(self) -> dict[str, KeyMap]:
        """{key in the file: what lies in it}."""
        found: dict[str, KeyMap] = {}
        for key, part in self._keys.items():
            found.setdefault(self.base.source.prefix + part.native, {})[key] = part
        return found

    @cached_property
    def layout(self) -> TensorHeader:
        """{key in the file: (dtype, shape)}."""
        mine = FORMATS[self.dtype]
        if self._file is None:
            shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in self._stored.items()}
            return {key: (mine, tuple(tensor.shape)) for key, tensor in to_native(shapes, self._keys).items()}
        kinds = {name: dtype for dtype, name in FORMATS.items()}
        layout: TensorHeader = {}
        for key, (dtype, shape) in self._file.layout.items():
            casts = key.startswith(self.base.source.prefix) and kinds[dtype].is_floating_point
            layout[key] = (mine if casts else dtype, shape)
        return layout

    @property
    def bytes(self) -> int:
        """Size of a file, without its header."""
        sizes = {name: dtype.itemsize for dtype, name in FORMATS.items()}
        return sum(torch.Size(shape).numel() * sizes[dtype] for dtype, shape in self.layout.values())

    def write(self, values: Values, facts: Mapping[str, str], path: Path) -> None:
        """Write the file, whole or not at all, one tensor in memory at a time. Raises RunError."""
        mine = {our_key(name): value for name, value in values.items()}
        kept = self._file.metadata if self._file else {}
        kept = {name: text for name, text in kept.items() if not name.startswith("modelspec.hash")}
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        metadata = {**kept, **self.facts, **facts, "modelspec.date": date}
        stream_tensors(path, self.layout, partial(self._tensor, mine), metadata)

    def _tensor(self, mine: Mapping[str, Tensor], key: str) -> Tensor:
        parts, (_, shape) = self._parts.get(key, {}), self.layout[key]
        if not parts.keys() & mine.keys():
            return self._kept(key)
        pieces = {name: (mine[name] if name in mine else self._stored[name]).detach().cpu().float() for name in parts}
        return to_native(pieces, parts)[next(iter(parts.values())).native].reshape(shape).to(self.dtype)

    def _kept(self, key: str) -> Tensor:
        """A tensor that is not trained."""
        if self._file is None:
            return to_native(self._stored, self._parts[key])[key].to(self.dtype)
        stored = self._file.get(key)
        return stored.to(self.dtype) if self.layout[key][0] == FORMATS[self.dtype] else stored

    def verify(self, values: Values, path: Path) -> str:
        """Compare the written file with the trained weights, bit for bit, and what is not trained with the base; returns a line that says so.

        Raises RunError where it differs.
        """
        file = TensorFile(path)
        mine = {our_key(name): value for name, value in values.items()}
        for key, parts in self._parts.items():
            native = next(iter(parts.values())).native
            for name, tensor in to_diffusers({native: file.get(key)}, parts).items():
                expected = (mine[name] if name in mine else self._stored[name]).detach().cpu().to(self.dtype)
                if not _equal(tensor, expected):
                    raise RunError(f"{name} in {path} is not what was trained: check the disk, and report this")
        others = [key for key in self.layout if key not in self._parts]
        for key in others:
            if not _equal(file.get(key), self._kept(key)):
                raise RunError(f"{key} in {path} is not the base model's: check the disk, and report this")
        rest = f"; {len(others)} others are the base model's" if others else ""
        return f"{len(self._parts)} tensors of the model's file are those that were trained, bit for bit{rest}"

    def unmoved(self, values: Values) -> list[str]:
        """Paths of the modules none of whose weights differ from the base's in the file's dtype."""
        moved = dict.fromkeys((name.partition("|")[0] for name in values), False)
        for name, value in values.items():
            module = name.partition("|")[0]
            before = self._stored[our_key(name)].to(self.dtype)
            moved[module] = moved[module] or not _equal(value.detach().cpu().to(self.dtype), before)
        return [module for module, is_moved in moved.items() if not is_moved]


def model_file_of(config: TrainConfig, base: Base) -> ModelFile | None:
    """How a full fine-tune of this base writes its files; None for a run that trains a LoRA."""
    return ModelFile(base=base, dtype=DTYPES[config.output.dtype]) if config.network.kind == WHOLE else None


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pair: Iterator[Tensor] = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(*pair)


def describe_model(
    *,
    title: str,
    architecture: str,
    resolution: int,
    trigger: str,
    facts: Mapping[str, str],
    training: Mapping[str, object],
    **_: object,
) -> dict[str, str]:
    """Metadata of a model's file that is known before training; the arguments are those of `lora.metadata.describe`."""
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.title": title,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "loom.network": json.dumps({"kind": "full"}),
        **{f"ss_{name}": str(value) for name, value in training.items()},
        **{f"loom.{name}": value for name, value in facts.items()},
    }
    return {**metadata, "modelspec.trigger_phrase": trigger} if trigger else metadata
