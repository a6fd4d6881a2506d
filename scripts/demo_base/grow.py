"""A wider and deeper SD3-class denoiser that starts as what a smaller one has learnt.

ComfyUI's SD3 class reads the number of blocks from the width, 64 channels a block, so that a third block needs a width of 192.
Channels are repeated and the weights that read them divided between the copies, as in Net2Net (Chen, Goodfellow and Shlens 2016,
arXiv 1511.05641): every product of the wider network is that of the smaller one. Only LayerNorm's mean and variance, which now
count some channels twice, move a little. The added block starts with its gates at zero: it passes through what it gets.
"""

import re

import torch
from torch import Tensor

HEAD = 64
UNGROWN_INPUTS = ("time_text_embed.timestep_embedder.linear_1.weight",)
"""Weights whose columns are the 256 sinusoids of the timestep, not channels."""
GATES = (2, 5, 8)
"""Which sixths (ninths with a second attention) of a block's modulation are gates."""


def repeated(channels: int, wider: int) -> Tensor:
    """(wider,) the former channel of each channel: whole heads come again from the first one on."""
    return torch.arange(wider) % channels


def widened(name: str, weight: Tensor, channels: int, wider: int, generator: torch.Generator) -> Tensor:
    """A parameter of the wider network: rows repeated, columns repeated and divided.

    Args:
        name: Its name in diffusers' SD3 class.
        weight: (out, …) or (out, in): each either a multiple of `channels`, or no channels at all.
        channels: Width of the smaller network.
        wider: Width of the larger one, at most twice `channels`.
        generator: How the columns are divided, unevenly, so that the copies do not stay equal while training.
    """
    copies = repeated(channels, wider)
    if name.endswith("pos_embed.pos_embed"):
        return weight[..., copies].clone()
    if weight.shape[0] % channels == 0:
        weight = torch.cat([chunk[copies] for chunk in weight.split(channels)])
    if weight.ndim == 2 and weight.shape[1] % channels == 0 and name not in UNGROWN_INPUTS:
        weight = torch.cat([_divided(chunk, copies, generator) for chunk in weight.split(channels, dim=1)], dim=1)
    return weight.clone()


def _divided(weight: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
    """(out, channels) → (out, wider): the columns of one channel sum to its former column."""
    channels, extra = weight.shape[1], len(copies) - weight.shape[1]
    share = torch.ones(weight.shape[0], len(copies), dtype=weight.dtype)
    share[:, channels:] = 0.25 + 0.5 * torch.rand(weight.shape[0], extra, generator=generator)
    share[:, :extra] = 1 - share[:, channels:]
    return weight[:, copies] * share


def deepened(weights: dict[str, Tensor], blocks: int, channels: int) -> dict[str, Tensor]:
    """One block more: a copy of the first, with gates of zero, goes before the last one (which ends SD3's text stream)."""
    grown = {}
    for name, weight in weights.items():
        found = re.match(r"transformer_blocks\.(\d+)\.(.+)", name)
        if found is None:
            grown[name] = weight
            continue
        number, rest = int(found[1]), found[2]
        grown[f"transformer_blocks.{number + (number == blocks - 1)}.{rest}"] = weight
        if number == 0:
            grown[f"transformer_blocks.{blocks - 1}.{rest}"] = _shut(rest, weight.clone(), channels)
    return grown


def _shut(name: str, weight: Tensor, channels: int) -> Tensor:
    """The rows of a block's modulation that are gates, set to zero."""
    if name.startswith(("norm1.linear", "norm1_context.linear")):
        for part in GATES:
            weight[part * channels : (part + 1) * channels] = 0
    return weight


def grown(weights: dict[str, Tensor], *, blocks: int, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a network of `blocks` + 1 blocks and 64 x as many channels, from those of `blocks` blocks."""
    generator = torch.Generator().manual_seed(seed)
    channels, wider = blocks * HEAD, (blocks + 1) * HEAD
    wide = {name: widened(name, weight, channels, wider, generator) for name, weight in sorted(weights.items())}
    return deepened(wide, blocks, wider)
