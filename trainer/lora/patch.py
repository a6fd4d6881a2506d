"""Applying a LoRA file to a frozen network as ComfyUI does: weights are replaced for a while, then restored."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import ModelFileError, did_you_mean
from ..weights.frozen import FrozenLinear, is_quantized_tensor, replace_module
from ..weights.row_parts import RowPart
from .adapted import dense_weight, own_weight
from .host_formula import group_by_module, refuse_foreign, weight_change


class Patchable(Protocol):
    """A network that a LoRA can be applied to, a part of `Denoiser`."""

    @property
    def family(self) -> str:
        """Name of the model family, for messages."""
        ...

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...

    def file_key(self, module_path: str) -> str:
        """The key of a module in LoRA files."""
        ...


def match_modules(denoiser: Patchable, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns {module path: {suffix: tensor}} of a LoRA file. Raises ModelFileError unless every tensor belongs to a module of the network."""
    modules, unknown = group_by_module(tensors)
    refuse_foreign(unknown, "the LoRA")
    paths = {
        denoiser.file_key(path): path
        for path, part in denoiser.module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
    }
    strange = sorted(modules.keys() - paths.keys()) + sorted(unknown)
    if strange:
        near = did_you_mean(strange[0], list(paths)) if len(paths) < 10_000 else ""
        raise ModelFileError(
            f"{len(strange)} of the LoRA's {len(modules)} modules are not in this {denoiser.family} model, first {strange[0]} ({near}): it was made for another model or loader"
        )
    if not modules:
        raise ModelFileError("the file holds no LoRA tensors")
    return {paths[key]: parts for key, parts in modules.items()}


@contextmanager
def patched(denoiser: Patchable, tensors: Mapping[str, Tensor], strength: float) -> Iterator[None]:
    """A context in which a LoRA is applied to the network at a strength. The original weights are kept and put back."""
    matched = match_modules(denoiser, tensors) if strength else {}
    originals: dict[str, nn.Module | nn.Parameter] = {}
    try:
        for path, parts in matched.items():
            originals[path] = _apply(denoiser.module, path, parts, strength)
        yield
    finally:
        for path, original in originals.items():
            _restore(denoiser.module, path, original)


@torch.no_grad()
def _apply(root: nn.Module, path: str, parts: Mapping[str, Tensor], strength: float) -> nn.Module | nn.Parameter:
    module = cast(nn.Linear | nn.Conv2d, root.get_submodule(path))
    base = dense_weight(module)
    change = weight_change({name: tensor.to(base.device) for name, tensor in parts.items()}, base, strength)
    weight = cast(nn.Parameter, module.weight)
    is_exact = not is_quantized_tensor(weight) and getattr(module, "scale", None) is None
    is_replaced = not is_exact or isinstance(module, RowPart)
    new = (base if is_replaced else own_weight(module)) + change  # a layer that stays computes its base LoRAs by itself
    new = new.to(weight.dtype) if is_exact else new
    if is_replaced:
        # A layer whose weight cannot be set (quantized, scaled, or rows of another layer) is replaced for the block.
        plain = FrozenLinear(base.shape[1], base.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(new, requires_grad=False)
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias, requires_grad=False)
        replace_module(root, path, plain)
        return module
    module.weight = nn.Parameter(new, requires_grad=False)
    return weight


def _restore(root: nn.Module, path: str, original: nn.Module | nn.Parameter) -> None:
    if isinstance(original, nn.Parameter):
        root.get_submodule(path).weight = original
    else:
        replace_module(root, path, original)
