"""How far the positions of a network reach. Networks with a table of positions, such as SD3's, cannot take a longer side."""

from torch import nn


def positions_per_side(module: nn.Module) -> int:
    """The most patches that one side of an image may have; 0 where positions are computed and have no end.

    The network may be diffusers' or ComfyUI's, which keep their table under different names.
    """
    table = getattr(module, "pos_embed", None)
    if table is None:
        return 0
    for holder in (table, module):
        size = getattr(holder, "pos_embed_max_size", None)
        if isinstance(size, int):
            return size
    return 0
