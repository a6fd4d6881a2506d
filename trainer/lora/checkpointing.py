"""Which parts of a network are recomputed in the backward pass, by `memory.checkpoint`."""

from torch import nn

from ..config.run import MemoryConfig
from ..errors import ConfigError
from ..families.common.modules import checkpoint_blocks
from ..weights.recompute import Recomputation, recompute_forward
from .roles import roles

LEAST_LINEARS = 2


def checkpoint(module: nn.Module, memory: MemoryConfig, *, rests: bool = False) -> None:
    """Switch a diffusers network to it; `rests`: it recomputes nothing until memory runs out. Raises ConfigError for one without feed-forwards where these are to be recomputed."""
    if memory.recompute == "ffn":
        checkpoint_feed_forwards(module, memory)
    elif memory.recomputes_blocks:
        checkpoint_blocks(module, every=memory.every, in_ram=memory.checkpoint_offload, rests=rests)


def checkpoint_feed_forwards(module: nn.Module, memory: MemoryConfig) -> list[str]:
    """Recompute these in the backward pass; returns their paths. Raises ConfigError for a network without any."""
    paths = feed_forwards(module)
    if not paths:
        raise ConfigError(
            "memory.checkpoint = 'ffn': this network's feed-forwards are no modules of their own; use 'all' or 'every 2'"
        )
    recompute = Recomputation(in_ram=memory.checkpoint_offload)
    for path in paths:
        recompute_forward(module.get_submodule(path), recompute)
    return paths


def feed_forwards(module: nn.Module) -> list[str]:
    """Paths of the outermost modules whose Linears are all feed-forward (`lora/roles.py`), two or more of them."""
    role_of = roles(module)
    found: list[str] = []

    def visit(path: str, part: nn.Module) -> None:
        inside = {name: role for name, role in role_of.items() if name.startswith(f"{path}.")}
        can_be_called = type(part).forward is not nn.Module.forward and not isinstance(part, nn.ModuleList)
        if can_be_called and len(inside) >= LEAST_LINEARS and set(inside.values()) == {"mlp"}:
            found.append(path)
            return
        for name, child in part.named_children():
            visit(f"{path}.{name}" if path else name, child)

    for name, child in module.named_children():
        visit(name, child)
    return found
