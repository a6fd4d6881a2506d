"""Gradient checkpointing of a shadow's blocks, exact also for blocks that change their inputs in place."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(shadow: nn.Module, class_names: Sequence[str]) -> int:
    """Recompute the blocks of these classes in the backward pass; returns how many there are. Outermost blocks only."""
    return sum(_wrap(child, class_names) for child in shadow.children())


def _wrap(module: nn.Module, class_names: Sequence[str]) -> int:
    if type(module).__name__ not in class_names:
        return sum(_wrap(child, class_names) for child in module.children())
    plain = module.forward

    def forward(*args: object, **kwargs: object) -> object:
        def block(*args: object) -> object:
            # Copies, so that additions in place inside the block leave the inputs as the recomputation must find them.
            return plain(*[_own(a) for a in args], **{name: _own(value) for name, value in kwargs.items()})

        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    module.forward = forward
    return 1


def _own(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
