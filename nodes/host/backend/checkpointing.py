"""Gradient checkpointing of a shadow's blocks, exact also for blocks that change their inputs in place."""

from collections.abc import Sequence

from torch import Tensor, nn

from ....trainer.weights.recompute import Recomputation


def checkpoint_blocks(shadow: nn.Module, class_names: Sequence[str]) -> int:
    """Recompute the blocks of these classes in the backward pass; returns how many there are. Outermost blocks only. The first
    recomputation is compared with its forward pass (`Recomputation`)."""
    return _wrap_children(shadow, class_names, Recomputation())


def _wrap_children(module: nn.Module, class_names: Sequence[str], recompute: Recomputation) -> int:
    return sum(_wrap(child, class_names, recompute) for child in module.children())


def _wrap(module: nn.Module, class_names: Sequence[str], recompute: Recomputation) -> int:
    if type(module).__name__ not in class_names:
        return _wrap_children(module, class_names, recompute)
    plain = module.forward

    def forward(*args: object, **kwargs: object) -> object:
        def block(*args: object) -> object:
            # Copies, so that additions in place inside the block leave the inputs as the recomputation must find them.
            return plain(*[_own(a) for a in args], **{name: _own(value) for name, value in kwargs.items()})

        return recompute(block, *args)

    module.forward = forward
    return 1


def _own(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value
