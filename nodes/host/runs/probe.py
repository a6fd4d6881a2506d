"""A loaded network probed at three sizes (`trainer/lora/probe.py`), with the inputs that ComfyUI makes of a real text."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ....trainer.lora.probe import Probe, meta_twin, probe
from ....trainer.types import Geometry
from ..backend.conditions import network_inputs
from ..backend.denoiser import attention, latent_dims
from ..comfy_types import BaseModel

SIDE = 8
"""Rows of the smaller latents, in the network's largest patches."""
PATCH = 4


@torch.inference_mode(False)
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

    Two images differ in size, and a third run has half of the text. `network` is a shadow of `model`'s, `dtype` what it computes
    in. Raises whatever the network raises on the meta device, and ValueError for a text of one token.
    """
    twin = meta_twin(network)
    side = SIDE * PATCH * factor
    small, large = Geometry.whole((side, side)), Geometry.whole((side, 2 * side))
    first, second = (network_inputs(model, text, size, values, factor, channels) for size in (small, large))
    tokens = _tokens(first)
    if tokens < 2:
        raise ValueError("the text has one token: its length cannot be varied")
    half = {name: _cut(value, tokens, tokens // 2) for name, value in first.items()}
    runs = ((small, first), (large, second), (small, half))
    dims = latent_dims(model)

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


def _tokens(inputs: Mapping[str, object]) -> int:
    """Length of the text."""
    context = inputs.get("c_crossattn")
    return context.shape[1] if isinstance(context, Tensor) and context.ndim > 2 else 0


def _cut(value: object, tokens: int, kept: int) -> object:
    """An input with `kept` tokens in place of all of the text's."""
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == tokens:
        return value[:, :kept]
    return kept if isinstance(value, int) and value == tokens else value
