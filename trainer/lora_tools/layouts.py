"""Key formats of the LoRA files of a base model: a run's LoRA in the formats of other programs, and theirs in the run's.

Training can write any format, and sweeps and `network.init_from` read any format. Unlike `convert`, which has only the LoRA
file, this module knows the network and therefore the sizes of its modules.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from ..choices import ADAPTERS
from ..diffusion.denoiser import Denoiser
from ..errors import ConfigError, ModelFileError
from ..families.common.family import Family, has_one_text_encoder
from ..families.common.keymap import KeyMap
from ..families.common.lora_layouts import Widths, spelled
from ..families.common.lora_names import is_text_encoder, text_key_in
from ..lora.host_formula import group_by_module
from .convert import as_written, keyed, rearranged, text_layout
from .products import Factors, factors_of, why_no_product

Parts = Mapping[str, Tensor]
"""{suffix: tensor} of one module."""


@dataclass(kw_only=True)
class Formats:
    """The key formats of the LoRA files of one network."""

    family: Family
    denoiser: Denoiser
    """The network; its weights are not needed and may be meta tensors."""

    @cached_property
    def _own(self) -> dict[str, nn.Module]:
        """{module key in this project's format: module}."""
        return {
            self.denoiser.file_key(path): part
            for path, part in self.denoiser.module.named_modules()
            if isinstance(part, nn.Linear | nn.Conv2d)
        }

    @cached_property
    def _keymap(self) -> KeyMap:
        weights = {key: cast(Tensor, part.weight) for key, part in self._own.items()}
        layers = getattr(self.denoiser.module.config, "layers_per_block", 2)
        widths = Widths(
            inputs={key: weight.shape[1] for key, weight in weights.items()},
            outputs={key: weight.shape[0] for key, weight in weights.items()},
            layers=layers if isinstance(layers, int) else layers[0],
        )
        return self.family.lora_map(widths)

    def native(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A LoRA of any format in this project's. Tensors of unknown modules are left as they are, for the caller to report.

        Raises ModelFileError for an adapter of another format that is not a plain LoRA.
        """
        modules, _ = group_by_module(tensors)
        texts, tensors = self._texts("native", modules, None), self._without_texts("native", modules, tensors)
        known = spelled(self._keymap, self.family.lora_names, self.family.lora_layouts)
        foreign = [key for key in modules if key not in self._own and key in known]
        if not foreign:
            return {**tensors, **texts}
        old = {known[key][1]: (known[key][0], _factors(key, modules[key])) for key in sorted(foreign)}
        dtype = max((tensors[key].dtype for key in tensors), key=lambda kind: kind.itemsize)
        rest = {key: t for key, t in tensors.items() if not any(key.startswith(f"{name}.") for name in foreign)}
        return rest | self._spelled(old, "native", dtype) | texts

    def written(self, tensors: Mapping[str, Tensor], format: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """A LoRA of this project in another key format, in `dtype`. Raises ConfigError if a module has no name there."""
        modules, _ = group_by_module(tensors)
        own = {key: parts for key, parts in modules.items() if not is_text_encoder(key)}
        known = spelled(self._keymap, self.family.lora_names, self.family.lora_layouts)
        lost = sorted(own.keys() - known.keys())
        if lost:
            raise ConfigError(
                f"output.format = {format!r}: {len(lost)} modules have no name in that format, first {lost[0]}; use native, or other target_modules"
            )
        old = {known[key][1]: (known[key][0], _factors(key, parts)) for key, parts in own.items()}
        kept = self._without_texts(format, modules, tensors)
        rest = {key: t.to(dtype) for key, t in kept.items() if is_text_encoder(key)}
        return rest | self._texts(format, modules, dtype) | self._spelled(old, format, dtype)

    def _renamed(self, format: str, modules: Iterable[str]) -> dict[str, str]:
        """Returns {module of a text encoder: its key in the format}, where it differs."""
        single = has_one_text_encoder(self.family)
        begin = "lora_te" if format == "diffusers" else "text_encoder"
        names = {key: text_key_in(format, key, single=single) for key in modules if key.startswith(begin)}
        return {key: name for key, name in names.items() if name is not None}

    def _texts(self, format: str, modules: Mapping[str, Parts], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The tensors of these modules under their new keys. `dtype` None keeps the dtype of each module."""
        renamed: dict[str, Tensor] = {}
        for key, name in self._renamed(format, modules).items():
            stored = dtype or next(iter(modules[key].values())).dtype
            renamed |= as_written(_factors(key, modules[key]), text_layout(format), stored).tensors(name)
        return renamed

    def _without_texts(self, format: str, modules: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        renamed = tuple(f"{key}." for key in self._renamed(format, modules))
        return {key: tensor for key, tensor in tensors.items() if not key.startswith(renamed)}

    def _spelled(self, old: Mapping[str, tuple[bool, Factors]], format: str, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        layout = self.family.lora_layouts[format]
        modules = rearranged(old, self._keymap, layout).modules
        for key, factors in keyed(modules, self.family, self._keymap, format).items():
            tensors |= as_written(factors, layout, dtype).tensors(key)
        return tensors


def check_format(format: str, kind: str, tucker: bool = False, norms: bool = False) -> None:
    """Raise ConfigError for an adapter kind that a key format has no form for."""
    if norms and format != "native":
        raise ConfigError(f"output.format = {format!r}: trained norms have no form in that layout here; use native")
    if tucker and format != "native":
        raise ConfigError(
            f"output.format = {format!r}: convolutions in Tucker form have none in that layout; use native"
        )
    if format != "native" and not ADAPTERS[kind].all_layouts:
        kinds = " or ".join(repr(known) for known, choice in ADAPTERS.items() if choice.all_layouts)
        raise ConfigError(
            f"output.format = {format!r}: only network.kind = {kinds} has a form in that layout; use native"
        )


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """The key format in which a run writes its LoRA files, and reads them back to check them."""

    formats: Formats
    format: str

    def write(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of this project's format in the file's format."""
        return self.formats.written(tensors, self.format, dtype)

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a file in this project's format."""
        return self.formats.native(tensors)


def _factors(key: str, parts: Parts) -> Factors:
    """The adapter of a module. Raises ModelFileError unless it is a product of two matrices."""
    if reason := why_no_product({name: tuple(tensor.shape) for name, tensor in parts.items()}):
        raise ModelFileError(f"{key} {reason}")
    try:
        return factors_of(parts)
    except RuntimeError as error:
        raise ModelFileError(f"{key} is damaged: {error}") from error
