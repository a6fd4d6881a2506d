"""Building a diffusers network around tensors that already exist: no second copy, nothing left unset."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import ConfigError, ModelFileError
from ...types import Shapes
from ...weights.frozen import FrozenLinear, compute_in
from ...weights.packing.layers import use_products
from ...weights.quantize import quantize, require_quanto
from ...weights.streaming import stream_base
from .family import Loading
from .keymap import KeyMap, listing, to_diffusers
from .source import Source

Native = Callable[[Shapes], tuple[dict[str, object], KeyMap]]
"""Configuration and key map, read off an original file's shapes."""
Adapt = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


CPU = torch.device("cpu")
AS_STORED = Loading(dtype=None, device=CPU)
"""Mapped from the file: nothing is read before it is used."""


def build(
    cls: type[nn.Module], config: Mapping[str, object], tensors: Mapping[str, Tensor], loading: Loading
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
    cls: type[nn.Module],
    source: Source,
    native: Native,
    loading: Loading,
    *,
    adapt: Adapt = dict,
    unused: tuple[str, ...] = (),
) -> nn.Module:
    """The denoiser of a source in either layout; `native` reads configuration and key map off an original file.

    `adapt` makes a diffusers folder's tensors those of `cls`; `unused` names keys of original files that nobody reads. Weights are mapped from the file;
    where they are to be quantized, or multiplied in 8 bits, they are brought to the device and packed one by one, so that there is
    never a full copy. Raises ConfigError for a base that is quantized already and should be quantized again.
    """
    if source.quanto_map is not None:
        _refuse_packing_twice(source, loading)
        module = unpack_quanto(cls, source, loading if loading.stream is None else replace(loading, device=CPU))
    elif loading.stream is not None and loading.device.type != "meta":
        module = _built(cls, source, native, AS_STORED, adapt, unused)
        _pack(module, loading, None)
    elif not loading.packs or loading.device.type == "meta":
        module = _built(cls, source, native, loading, adapt, unused)
    else:
        module = _built(cls, source, native, AS_STORED, adapt, unused)
        _pack(module, loading, loading.device)
        _place_rest(module, loading)
    if loading.stream is not None and loading.device.type != "meta":
        assert loading.compute_dtype is not None
        stream_base(module, loading.stream, loading.device, loading.dtype, loading.compute_dtype)
    elif loading.compute_dtype is not None:
        compute_in(module, loading.compute_dtype)
    return module


def _pack(module: nn.Module, loading: Loading, device: torch.device | None) -> None:
    """Quantize, or keep in 8 bits, what shall be, on a device (None: where it lies)."""
    if loading.quantize != "none":
        quantize(module, loading.quantize, loading.dtype, device, keep=loading.keep_originals)
    if loading.matmul != "off":
        assert loading.compute_dtype is not None
        use_products(module, loading.matmul, loading.compute_dtype, device)


def _built(
    cls: type[nn.Module], source: Source, native: Native, loading: Loading, adapt: Adapt, unused: tuple[str, ...]
) -> nn.Module:
    if source.config is not None:
        return build(cls, source.config, adapt(source.tensors()), loading)
    config, keys = native(source.shapes)
    module = build(cls, config, to_diffusers(source.tensors(), keys, unused), loading)
    scale_weights(module, {key: part.native for key, part in keys.items()}, source.scales(), loading)
    return module


def scale_weights(module: nn.Module, keys: Mapping[str, str], scales: Mapping[str, Tensor], loading: Loading) -> None:
    """Give the layers of a scaled fp8 file their factors; `keys` are {our key: original key}."""
    for key, native in keys.items():
        if native not in scales:
            continue
        layer = module.get_submodule(key.removesuffix(".weight"))
        if not isinstance(layer, nn.Linear):
            raise ModelFileError(f"{native} is a scaled fp8 weight of a {type(layer).__name__}: give the bf16 file")
        layer.__class__ = FrozenLinear
        layer.scale = scales[native].to(loading.device)


def _refuse_packing_twice(source: Source, loading: Loading) -> None:
    for name, value in (("quantize", loading.quantize), ("matmul", loading.matmul)):
        if value in ("none", "off"):
            continue
        raise ConfigError(
            f"model.{name} = {value!r}: {source.path} is quantised already; leave it out, or give the original base"
        )


def _place_rest(module: nn.Module, loading: Loading) -> None:
    """Bring to the device what is not quantized: norms, embeddings, convolutions, biases, buffers."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if type(parameter) is nn.Parameter:
                setattr(part, name, nn.Parameter(_placed(parameter.detach(), loading), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(
                name, _placed(buffer, loading), persistent=name not in part._non_persistent_buffers_set
            )


def unpack_quanto(cls: type[nn.Module], source: Source, loading: Loading) -> nn.Module:
    """A network whose weights optimum-quanto has quantized already; they stay quantized. Raises ConfigError without the library."""
    require_quanto(f"{source.path} is quantized and")
    from optimum.quanto import requantize

    with torch.device("meta"):
        module: nn.Module = cls.from_config(dict(source.config or {}))  # type: ignore[attr-defined]
    requantize(module, source.tensors(), source.quanto_map, device=loading.device)
    return module.requires_grad_(False).eval()


def _placed(tensor: Tensor, loading: Loading) -> Tensor:
    dtype = loading.dtype if loading.dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=loading.device, dtype=dtype)


def checkpoint_blocks(module: nn.Module, *, every: int = 1, in_ram: bool = False, rests: bool = False) -> None:
    """Switch a diffusers network to gradient checkpointing that leaves the global random state alone, and compares its first
    recomputation with the forward pass. `every`, `in_ram`, `rests`: see `Recomputation`."""
    from ...weights.recompute import Recomputation, mark

    recompute = Recomputation(every=every, in_ram=in_ram, rests=rests)
    module.enable_gradient_checkpointing(gradient_checkpointing_func=recompute)  # type: ignore[operator]
    mark(module, recompute)
