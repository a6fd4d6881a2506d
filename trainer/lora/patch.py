"""Applying a LoRA file to a frozen network as ComfyUI does: weights are replaced for a while, then restored."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import ModelFileError, did_you_mean
from ..weights.frozen import FrozenLinear, is_quantized_tensor, replace_module
from ..weights.row_parts import RowPart
from .adapted import dense_weight, own_weight
from .host_formula import bias_change, changed_shape, changes_weight, group_by_module, weight_change
from .kinds.foreign import no_adapter, refuse_foreign


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
    if not modules:
        raise ModelFileError(f"the LoRA {no_adapter(tensors)}")
    paths = _paths(denoiser, (nn.Linear, nn.Conv2d))
    if modules.keys() - paths.keys():  # trained norms and embeddings are rare
        paths = _paths(denoiser, (nn.Module,)) | paths
    strange = sorted(modules.keys() - paths.keys()) + sorted(unknown)
    if strange:
        near = did_you_mean(strange[0], list(paths)) if len(paths) < 10_000 else ""
        raise ModelFileError(
            f"{len(strange)} of the LoRA's {len(modules) + len(unknown)} modules are not in this {denoiser.family} model, first {strange[0]} ({near}): it was made for another model or loader"
        )
    return {paths[key]: parts for key, parts in modules.items()}


def _paths(denoiser: Patchable, kinds: tuple[type[nn.Module], ...]) -> dict[str, str]:
    """{key in LoRA files: path} of the modules of these classes that have a weight."""
    found = {}
    for path, part in denoiser.module.named_modules():
        if isinstance(part, kinds) and getattr(part, "weight", None) is not None:
            with suppress(KeyError):  # without a name in the layout that this family writes
                found[denoiser.file_key(path)] = path
    return found


def check_shapes(denoiser: Patchable, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelFileError if a LoRA has modules that the network does not have, or of other sizes. The network may be without weights."""
    for path, parts in match_modules(denoiser, tensors).items():
        shape = tuple(cast(Tensor, denoiser.module.get_submodule(path).weight).shape)
        made = changed_shape(parts)
        if made is not None and made != (shape[0], math.prod(shape[1:])):
            raise ModelFileError(
                f"{denoiser.file_key(path)} is made for a weight of {made[0]} rows and {made[1]} columns, this {denoiser.family} model's is {shape}: it was made for a model of another size"
            )


@contextmanager
def patched(denoiser: Patchable, tensors: Mapping[str, Tensor], strength: float) -> Iterator[None]:
    """A context in which a LoRA is applied to the network at a strength. The original weights are kept and put back."""
    matched = match_modules(denoiser, tensors) if strength else {}
    originals: dict[str, nn.Module] = {}
    weights: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for path, parts in matched.items():
            module = denoiser.module.get_submodule(path)
            try:
                _change_bias(module, parts, strength, weights)
                if changes_weight(parts):
                    _change_weight(denoiser.module, path, parts, strength, originals, weights)
            except RuntimeError as error:
                raise ModelFileError(
                    f"{denoiser.file_key(path)} of the LoRA does not fit a weight of {tuple(weight_of(module).shape)}: it was made for a model of another size"
                ) from error
        yield
    finally:
        for path, original in originals.items():
            replace_module(denoiser.module, path, original)
        for module, name, parameter in reversed(weights):
            setattr(module, name, parameter)


def weight_of(module: nn.Module) -> Tensor:
    """The weight that a layer computes with in fp32, also of a norm or an embedding."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return dense_weight(module)
    return cast(Tensor, module.weight).detach().float()


@torch.no_grad()
def _change_bias(
    module: nn.Module, parts: Mapping[str, Tensor], strength: float, changed: list[tuple[nn.Module, str, nn.Parameter]]
) -> None:
    """ComfyUI leaves out the change of a bias that the model does not have."""
    change, bias = bias_change(parts, strength), getattr(module, "bias", None)
    if change is None or bias is None:
        return
    changed.append((module, "bias", bias))
    new = (bias.float() + change.to(bias.device)).to(bias.dtype)
    module.bias = nn.Parameter(new, requires_grad=False)


@torch.no_grad()
def _change_weight(
    root: nn.Module,
    path: str,
    parts: Mapping[str, Tensor],
    strength: float,
    replaced: dict[str, nn.Module],
    changed: list[tuple[nn.Module, str, nn.Parameter]],
) -> None:
    """A layer whose weight cannot be set (quantized, scaled, or rows of another layer) is replaced, else its weight is."""
    module = root.get_submodule(path)
    base = weight_of(module)
    change = weight_change({name: tensor.to(base.device) for name, tensor in parts.items()}, base, strength)
    weight = cast(nn.Parameter, module.weight)
    is_exact = not is_quantized_tensor(weight) and getattr(module, "scale", None) is None
    is_replaced = not is_exact or isinstance(module, RowPart)
    is_layer = isinstance(module, nn.Linear | nn.Conv2d)  # one that stays computes its base LoRAs by itself
    new = (base if is_replaced or not is_layer else own_weight(module)) + change
    new = new.to(weight.dtype) if is_exact else new
    if is_replaced:
        plain = FrozenLinear(base.shape[1], base.shape[0], bias=False, device="meta")
        plain.weight = nn.Parameter(new, requires_grad=False)
        if module.bias is not None:
            plain.bias = nn.Parameter(cast(Tensor, module.bias), requires_grad=False)
        replace_module(root, path, plain)
        replaced[path] = module
        return
    changed.append((module, "weight", weight))
    module.weight = nn.Parameter(new, requires_grad=False)
