"""A loaded network probed at several sizes (`trainer/lora/probe.py`), with the inputs that ComfyUI makes of a real text."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....trainer.lora.probe import Probe, meta_twin, probe
from ....trainer.types import Geometry
from ..backend.conditions import network_inputs
from ..backend.denoiser import attention, latent_dims
from ..comfy_types import BaseModel

SIDE = 16
"""Rows of the smaller latents, in the network's largest patches."""
PATCH = 4
WIDE = 4
"""How many times wider the larger latents are: enough for networks that fill their tokens up to a multiple of 32."""


def probe_loaded(
    model: BaseModel,
    network: nn.Module,
    text: Mapping[str, object],
    values: Mapping[str, float],
    factor: int,
    channels: int,
    dtype: torch.dtype,
) -> Probe:
    """What runs through the Linears of a network with the inputs of this text, as the cache holds it (a batch of 1).

    Two images differ in size, and a third run has half of the text; a text without a length, as a pooled one, stays as it is.
    `network` is a shadow of `model`'s, `dtype` what it computes in. Raises whatever the network raises on the meta device.
    """
    side = SIDE * PATCH * factor
    small, large = Geometry.whole((side, side)), Geometry.whole((side, WIDE * side))
    first, second = (network_inputs(model, text, size, values, factor, channels) for size in (small, large))
    runs = [(small, first), (large, second)]
    tokens, filled = _length(text.values()), _length(first.values())
    if tokens > 1:
        half = network_inputs(model, _cut(text, tokens), small, values, factor, channels)
        if filled > 1 and _length(half.values()) == filled:  # the model fills every text up to one length
            half = _cut(first, filled)
        runs.append((small, half))
    dims = latent_dims(model)
    with torch.inference_mode(False):
        twin = meta_twin(network)

        def run(size: Geometry, inputs: Mapping[str, object]) -> Tensor:
            width, height = size.target
            shape = (1, channels, *([1] if dims == 5 else []), height // factor, width // factor)
            return call(twin, torch.zeros(shape, device="meta", dtype=dtype), inputs)

        return probe(twin, [lambda size=size, inputs=inputs: run(size, inputs) for size, inputs in runs])  # type: ignore[misc]


def call(twin: nn.Module, noisy: Tensor, inputs: Mapping[str, object]) -> Tensor:
    """The network's output on the meta device."""
    given = {name: _placed(value, noisy.dtype) for name, value in inputs.items()}
    context, image = given.pop("c_crossattn", None), given.pop("c_concat", None)
    if isinstance(image, Tensor):
        noisy = torch.cat([noisy, image], dim=1)
    options = {"optimized_attention_override": attention}
    output = twin(noisy, torch.full((1,), 0.5, device="meta"), context=context, transformer_options=options, **given)
    assert isinstance(output, Tensor)
    return output


def _placed(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, list):
        return [_placed(item, dtype) for item in value]
    if isinstance(value, Tensor):
        return value.to("meta", dtype) if value.is_floating_point() else value.to("meta")
    return value


def _is_text(value: object) -> bool:
    """Whether it is a sequence of tokens: hidden states (1, length, width), or their numbers (1, length)."""
    return isinstance(value, Tensor) and (value.ndim == 3 or (value.ndim == 2 and not value.is_floating_point()))


def _length(values: object) -> int:
    """The length of the first text among the values; 0 without one."""
    return next((value.shape[1] for value in values if _is_text(value)), 0)  # type: ignore[attr-defined]


def _cut(inputs: Mapping[str, object], tokens: int) -> dict[str, object]:
    """The same with half of every sequence that is `tokens` long, and of a constant that states this length."""
    kept = tokens // 2

    def half(value: object) -> object:
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens:
            return value[:, :kept]
        return kept if isinstance(value, int) and value == tokens else value

    return {name: half(value) for name, value in inputs.items()}
