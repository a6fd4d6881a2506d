"""A shadow of a loaded network: the same classes and forward code, plain torch layers, shared weights.

Every module is a new, empty object of the same class whose attributes are those of the original, less ComfyUI's runtime
state; Linear, convolutions, norms and embeddings become torch layers of ours that cast their weight on use. Parameters
and buffers lie over the original storages, so no weight is copied, and nothing of ComfyUI's memory management is touched
when the shadow runs: no casting hooks, no interrupt flag, no paging.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....trainer.weights.frozen import FrozenConv2d, FrozenLinear
from ....trainer.weights.out_of_place import out_of_place_class
from .sharing.share_storage import share

RUNTIME_NAMES = {
    "weight_function", "bias_function", "prev_comfy_cast_weights", "forward", "factory_kwargs", "tensor_class",
    "weight_lowvram_function", "bias_lowvram_function", "scale_weight", "scale_input",
}  # fmt: skip
RUNTIME_PREFIXES = ("comfy_", "_comfy", "_v", "_pin", "_prefetch", "weight_comfy", "bias_comfy")
HOOKS = {name for name, value in vars(nn.Module()).items() if "hook" in name and value is not None}
CONTAINERS = ("_parameters", "_buffers", "_modules")
NORMS = (nn.LayerNorm, nn.GroupNorm)
WRITES_OVER = {
    "comfy.text_encoders.llama.TransformerBlock",  # HiDream O1: torch.add(…, out=…)
    "comfy.ldm.lightricks.model.BasicTransformerBlock",  # x += attention(x), then x.addcmul_(…)
    "comfy.ldm.pixeldit.model.MMDiTBlockT2I",  # x.addcmul_(x, …)
    "comfy.ldm.pixeldit.modules.PiTBlock",
    "QwenImage21TransformerBlock",  # of newer versions: x[:, n:].addcmul_(…) after a norm of x
}
"""Blocks, by the names of their classes, that write over what a gradient needs. The real-host tests compare them with ComfyUI's own forward."""


def _cast(value: Tensor | None, x: Tensor) -> Tensor | None:
    return None if value is None else value.to(x.dtype)


class ShadowLayerNorm(nn.LayerNorm):
    """Normalises a copy: residual blocks that add in place would change what autograd has saved."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _cast(self.weight, input), _cast(self.bias, input)
        return F.layer_norm(_own(input), self.normalized_shape, weight, bias, self.eps)


class ShadowRMSNorm(nn.Module):
    """Normalises a copy, as `ShadowLayerNorm` does."""

    normalized_shape: tuple[int, ...]
    weight: Tensor | None
    eps: float | None

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(_own(input), tuple(self.normalized_shape), _cast(self.weight, input), self.eps)


class ShadowGroupNorm(nn.GroupNorm):
    """Normalises its input without a copy: the residual blocks that use it build new tensors."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, _cast(self.weight, input), _cast(self.bias, input), self.eps)


class ShadowEmbedding(nn.Embedding):
    """Returns rows of the table in the wanted dtype."""

    def forward(self, input: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx).to(out_dtype or self.weight.dtype)


class _Convolution(Protocol):
    """The members of torch's convolutions that `ShadowConv` uses."""

    weight: Tensor
    bias: Tensor | None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


class ShadowConv(nn.Module):
    """Other convolutions: rare and small, so the cast weight may be saved. Made by mixing in below the real class."""

    def forward(self: _Convolution, input: Tensor, autopad: str | None = None) -> Tensor:
        weight = self.weight
        if autopad == "causal_zero":
            weight = weight[:, :, -input.shape[2] :]
        return self._conv_forward(input, weight.to(input.dtype), _cast(self.bias, input))


class ShadowConv1d(ShadowConv, nn.Conv1d):
    """A one-dimensional `ShadowConv`."""


class ShadowConv3d(ShadowConv, nn.Conv3d):
    """A three-dimensional `ShadowConv`."""


def _own(x: Tensor) -> Tensor:
    """A copy where autograd will save it, so that a later in-place addition cannot reach it."""
    return x.clone() if torch.is_grad_enabled() and x.requires_grad else x


def build_shadow(root: nn.Module, originals: Mapping[str, Tensor]) -> nn.Module:
    """The shadow of `root`. `originals` maps its state_dict keys to unpatched weights; others are taken as they are.

    Call it outside inference mode. Raises KeyError if a key of `originals` is not in the network.
    """
    shadow = _shadow(root, "", dict(originals))
    return shadow.requires_grad_(False).eval()


def _shadow(module: nn.Module, prefix: str, originals: dict[str, Tensor]) -> nn.Module:
    new = _shadow_class(module).__new__(_shadow_class(module))
    for name, value in vars(module).items():
        if name in CONTAINERS:
            continue
        if name in HOOKS:
            new.__dict__[name] = type(value)()
        elif name not in RUNTIME_NAMES and not name.startswith(RUNTIME_PREFIXES):
            new.__dict__[name] = _plain_attribute(value)
    new.__dict__["_parameters"] = {
        name: _parameter(originals.get(prefix + name, value)) for name, value in module._parameters.items()
    }
    new.__dict__["_buffers"] = {
        name: None if value is None else share(originals.get(prefix + name, value))
        for name, value in module._buffers.items()
    }
    new.__dict__["_modules"] = {
        name: None if child is None else _shadow(child, f"{prefix}{name}.", originals)
        for name, child in module._modules.items()
    }
    if hasattr(module, "weight_function"):
        # Some networks hand a norm to the host's own casting function, which looks for these; empty, it only casts.
        new.__dict__ |= {"weight_function": [], "bias_function": []}
        new.__dict__["_parameters"].setdefault("bias", None)
    if isinstance(new, FrozenLinear):
        _finish_linear(new, module)
    return new


def _parameter(value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(share(value), requires_grad=False)


def _plain_attribute(value: object) -> object:
    """Tensors that are plain attributes become normal tensors too; everything else is shared as it is."""
    return share(value) if isinstance(value, Tensor) else value


def _finish_linear(new: FrozenLinear, module: nn.Module) -> None:
    """Scaled fp8 files keep a factor with the weight, unless it is part of a quantized tensor."""
    scale = getattr(module, "scale_weight", None)
    for name in ("scale_weight", "scale_input"):
        new._parameters.pop(name, None)
    new._parameters.setdefault("bias", None)
    if isinstance(scale, Tensor) and not (scale.numel() == 1 and scale.float().item() == 1.0):
        new.scale = share(scale)


def _shadow_class(module: nn.Module) -> type[nn.Module]:
    """Our layer for a layer of torch or of ComfyUI's ops, else the module's own class; a block that writes over what a gradient needs
    runs out of place."""
    kind: Any = type(module)
    for base, ours in (
        (nn.Linear, FrozenLinear),
        (nn.Conv2d, FrozenConv2d),
        (nn.Conv1d, ShadowConv1d),
        (nn.Conv3d, ShadowConv3d),
        (nn.LayerNorm, ShadowLayerNorm),
        (nn.GroupNorm, ShadowGroupNorm),
        (nn.Embedding, ShadowEmbedding),
    ):
        if isinstance(module, base):
            return _with_own_forward(kind, ours) if base in NORMS else ours
    if kind.__name__ == "RMSNorm" and hasattr(module, "normalized_shape"):
        return ShadowRMSNorm
    if kind.__name__ == "Linear" and hasattr(module, "in_features"):  # ComfyUI's quantized Linear is not an nn.Linear
        return FrozenLinear
    if {kind.__name__, f"{kind.__module__}.{kind.__name__}"} & WRITES_OVER:
        return out_of_place_class(kind)
    found: type[nn.Module] = kind
    return found


@cache
def _with_own_forward(kind: Any, ours: Any) -> type[nn.Module]:
    """Our layer. Where the network derives a layer of its own from ComfyUI's, with a forward that calls its, ours stands in the place
    of ComfyUI's: Stable Cascade's norms turn the image round before and after."""
    own = next(one for one in kind.__mro__ if one.__module__ == "comfy.ops" or one.__module__.startswith("torch."))
    if own is kind or "forward" not in vars(kind):
        return ours
    below = type(ours.__name__, (ours, own), {})
    return type(kind.__name__, (kind, below), {"__module__": kind.__module__})
