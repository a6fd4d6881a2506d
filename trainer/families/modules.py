"""Building a diffusers network around tensors that already exist: no second copy, nothing left unset."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..frozen import compute_in
from ..lora.quantize import quantize
from ..records import Shapes
from .base import Loading
from .keymap import KeyMap, listing, to_diffusers
from .source import Source


def build(
    cls: type[nn.Module], config: Mapping[str, Any], tensors: Mapping[str, Tensor], loading: Loading
) -> nn.Module:
    """Make `cls(**config)` hold exactly these tensors (shared where dtype and device allow), frozen, in eval mode.

    Raises ModelFileError listing missing and unexpected tensors and wrong shapes.
    """
    with torch.device("meta"):
        module: nn.Module = cls.from_config(dict(config))  # type: ignore[attr-defined]
    expected = module.state_dict()
    wrong = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(t.shape)}"
        for key, t in expected.items()
        if key in tensors and tensors[key].shape != t.shape
    ]
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected or wrong:
        raise ModelFileError(
            "the weights do not fit the network: "
            + listing("missing", missing)
            + listing("unexpected", unexpected)
            + listing("of another shape", wrong)
        )
    module.load_state_dict({key: _placed(tensor, loading) for key, tensor in tensors.items()}, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def load(
    cls: type[nn.Module], source: Source, native: Callable[[Shapes], tuple[dict[str, Any], KeyMap]], loading: Loading
) -> nn.Module:
    """The denoiser of a source in either layout; `native` reads configuration and key map off an original file.

    Weights are mapped from the file and packed one by one where asked for, so that no full copy comes to be.
    """
    if source.quanto_map is not None:
        module = unpack_quanto(cls, source, loading)
    elif source.config is not None:
        module = build(cls, source.config, source.tensors(), loading)
    else:
        config, keys = native(source.shapes)
        module = build(cls, config, to_diffusers(source.tensors(), keys), loading)
    if loading.quantize != "none":
        quantize(module, loading.quantize)
    if loading.compute_dtype is not None:
        compute_in(module, loading.compute_dtype)
    return module


def unpack_quanto(cls: type[nn.Module], source: Source, loading: Loading) -> nn.Module:
    """A network whose weights optimum-quanto has packed already; they stay packed."""
    from optimum.quanto import requantize

    with torch.device("meta"):
        module: nn.Module = cls.from_config(dict(source.config or {}))  # type: ignore[attr-defined]
    requantize(module, source.tensors(), source.quanto_map, device=loading.device)
    return module.requires_grad_(False).eval()


def _placed(tensor: Tensor, loading: Loading) -> Tensor:
    dtype = loading.dtype if loading.dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=loading.device, dtype=dtype)


def checkpoint_blocks(module: nn.Module) -> None:
    """Switch a diffusers network to gradient checkpointing that leaves the global random state alone."""
    from torch.utils.checkpoint import checkpoint

    def recompute(function: Any, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    module.enable_gradient_checkpointing(gradient_checkpointing_func=recompute)  # type: ignore[operator]
