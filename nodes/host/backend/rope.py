"""Autograd for ComfyUI's fused rotary embeddings, which have a forward only.

The host's own switch for this is a process-wide flag that would change generation that runs at the same time. Formulas
registered with torch are thread-safe and independent of the host's version: the gradient of a rotation is the rotation
back; that of a normalised rotation is recomputed through plain torch.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = "comfy_kitchen"
Gradients: TypeAlias = tuple[Tensor | None, ...]
"""One for each argument of the operator; None for an argument that is not trained."""


class Context(Protocol):
    """What torch keeps of a call for its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    epsilon: float

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors until the backward pass."""


_registered: set[str] = set()


def register_rope_gradients() -> None:
    """Register with torch the gradients of comfy_kitchen's apply_rope(1) and rms_rope(1), where they exist. Idempotent."""
    try:
        import comfy_kitchen  # noqa: F401 - defines the operators
    except ImportError:  # older hosts rotate with plain torch
        return
    for name, (setup, backward) in FORMULAS.items():
        if hasattr(getattr(torch.ops, LIBRARY), name) and name not in _registered:
            torch.library.register_autograd(f"{LIBRARY}::{name}", backward, setup_context=setup)
            _registered.add(name)


def _rotate_back(grad: Tensor, table: Tensor) -> Tensor:
    """A table of 2x2 rotations is undone by its transpose."""
    inverse = table.transpose(-1, -2).contiguous()
    return getattr(torch.ops, LIBRARY).apply_rope1(grad.contiguous(), inverse)


def _setup_rope1(ctx: Context, inputs: tuple[Tensor, Tensor], output: object) -> None:
    ctx.save_for_backward(inputs[1])


def _rope1(ctx: Context, grad: Tensor) -> Gradients:
    (table,) = ctx.saved_tensors
    return _rotate_back(grad, table), None


def _setup_rope(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor], output: object) -> None:
    ctx.save_for_backward(inputs[2])


def _rope(ctx: Context, grad_q: Tensor, grad_k: Tensor) -> Gradients:
    (table,) = ctx.saved_tensors
    return _rotate_back(grad_q, table), _rotate_back(grad_k, table), None


def _setup_rms_rope1(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, float], output: object) -> None:
    x, table, scale, epsilon = inputs
    ctx.save_for_backward(x, table, scale)
    ctx.epsilon = epsilon


def _rms_rope1(ctx: Context, grad: Tensor) -> Gradients:
    x, table, scale = ctx.saved_tensors
    return _norm_backward(x, scale, ctx.epsilon, _rotate_back(grad, table)), None, None, None


def _setup_rms_rope(
    ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, float], output: object
) -> None:
    q, k, table, q_scale, k_scale, epsilon = inputs
    ctx.save_for_backward(q, k, table, q_scale, q_scale if k_scale is None else k_scale)
    ctx.epsilon = epsilon


def _rms_rope(ctx: Context, grad_q: Tensor, grad_k: Tensor) -> Gradients:
    q, k, table, q_scale, k_scale = ctx.saved_tensors
    back_q = _norm_backward(q, q_scale, ctx.epsilon, _rotate_back(grad_q, table))
    back_k = _norm_backward(k, k_scale, ctx.epsilon, _rotate_back(grad_k, table))
    return back_q, back_k, None, None, None, None


def _norm_backward(x: Tensor, scale: Tensor, epsilon: float, grad: Tensor) -> Tensor:
    """Gradient of rms_norm with a frozen scale."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        normal = F.rms_norm(leaf, (x.shape[-1],), scale.to(x.dtype), epsilon)
    return torch.autograd.grad(normal, leaf, grad)[0]


FORMULAS: dict[str, tuple[Callable[..., None], Callable[..., Gradients]]] = {
    "apply_rope1": (_setup_rope1, _rope1),
    "apply_rope": (_setup_rope, _rope),
    "rms_rope1": (_setup_rms_rope1, _rms_rope1),
    "rms_rope": (_setup_rms_rope, _rms_rope),
}
