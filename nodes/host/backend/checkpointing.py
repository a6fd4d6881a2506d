"""Gradient checkpointing of a shadow: its blocks, one in so many of them, or the feed-forwards in them."""

from collections.abc import Sequence

from torch import nn

from ....trainer.config.run import MemoryConfig
from ....trainer.lora.checkpointing import checkpoint_feed_forwards
from ....trainer.weights.recompute import Recomputation, mark, recompute_forward


def checkpoint(shadow: nn.Module, class_names: Sequence[str], memory: MemoryConfig, *, rests: bool = False) -> None:
    """As `memory.checkpoint` says; blocks are the modules of these classes. `rests`: nothing is recomputed until memory runs out.
    Raises ConfigError for a network without feed-forwards where these are to be recomputed."""
    if memory.recompute == "ffn":
        checkpoint_feed_forwards(shadow, memory)
    elif memory.recomputes_blocks:
        in_ram = memory.checkpoint_offload
        checkpoint_blocks(shadow, class_names, every=memory.every, in_ram=in_ram, rests=rests)


def checkpoint_blocks(
    shadow: nn.Module, class_names: Sequence[str], *, every: int = 1, in_ram: bool = False, rests: bool = False
) -> int:
    """Recompute the blocks of these classes in the backward pass, or one in `every`; returns how many. Outermost blocks only. The first
    recomputation is compared with its forward pass (`Recomputation`)."""
    chosen = _blocks(shadow, class_names)[::every]
    recompute = Recomputation(in_ram=in_ram, rests=rests)
    mark(shadow, recompute)
    for block in chosen:
        recompute_forward(block, recompute)
    return len(chosen)


def _blocks(module: nn.Module, class_names: Sequence[str]) -> list[nn.Module]:
    found = []
    for child in module.children():
        found += [child] if type(child).__name__ in class_names else _blocks(child, class_names)
    return found
