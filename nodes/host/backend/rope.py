"""Autograd for ComfyUI's fused rotary embeddings and modulated norms, which have a forward only.

The host's own switch for this is a process-wide flag that would change generation that runs at the same time. Formulas
registered with torch are thread-safe and independent of the host's version: the gradient of a rotation is the rotation
back; that of a normalised rotation is recomputed through plain torch. Networks rotate neighbouring numbers (Flux, Z-Image) or
the halves of a head (Anima, ErnieImage, Ideogram 4, LTX).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

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
    width: int
    arguments: int

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors until the backward pass."""


_registered: set[str] = set()


def register_rope_gradients() -> None:
    """Register with torch the gradients of comfy_kitchen's rotations (`FORMULAS`), where they exist. Idempotent."""
    try:
        import comfy_kitchen  # noqa: F401 - defines the operators
    except ImportError:  # older hosts rotate with plain torch
        return
    for name, (setup, backward) in FORMULAS.items():
        if hasattr(getattr(torch.ops, LIBRARY), name) and name not in _registered:
            torch.library.register_autograd(f"{LIBRARY}::{name}", backward, setup_context=setup)
            _registered.add(name)


def _rotate_back(rotation: str, grad: Tensor, table: Tensor, width: int = 0) -> Tensor:
    """A table of 2x2 rotations is undone by its transpose. With a width only the first numbers of a head are rotated."""
    turn = getattr(getattr(torch.ops, LIBRARY), rotation)
    inverse = table.transpose(-1, -2).contiguous()
    if width in (0, grad.shape[-1]):
        return turn(grad.contiguous(), inverse)
    return torch.cat([turn(grad[..., :width].contiguous(), inverse), grad[..., width:]], dim=-1)


def _setup_rope1(ctx: Context, inputs: tuple[Tensor, Tensor], output: object) -> None:
    ctx.save_for_backward(inputs[1])


def _rope1(rotation: str, ctx: Context, grad: Tensor) -> Gradients:
    (table,) = ctx.saved_tensors
    return _rotate_back(rotation, grad, table), None


def _setup_rope(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor], output: object) -> None:
    ctx.save_for_backward(inputs[2])


def _rope(rotation: str, ctx: Context, grad_q: Tensor, grad_k: Tensor) -> Gradients:
    (table,) = ctx.saved_tensors
    return _rotate_back(rotation, grad_q, table), _rotate_back(rotation, grad_k, table), None


def _setup_rms_rope1(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, float], output: object) -> None:
    x, table, scale, epsilon = inputs
    ctx.save_for_backward(x, table, scale)
    ctx.epsilon = epsilon


def _rms_rope1(rotation: str, ctx: Context, grad: Tensor) -> Gradients:
    x, table, scale = ctx.saved_tensors
    return _norm_backward(x, scale, ctx.epsilon, _rotate_back(rotation, grad, table)), None, None, None


def _setup_rms_rope(ctx: Context, inputs: tuple[Any, ...], output: object) -> None:
    q, k, table, q_scale, k_scale, epsilon, *width = inputs
    ctx.save_for_backward(q, k, table, q_scale, q_scale if k_scale is None else k_scale)
    ctx.epsilon, ctx.width, ctx.arguments = epsilon, width[0] if width else 0, len(inputs)


def _rms_rope(rotation: str, ctx: Context, grad_q: Tensor, grad_k: Tensor) -> Gradients:
    q, k, table, q_scale, k_scale = ctx.saved_tensors
    back_q = _norm_backward(q, q_scale, ctx.epsilon, _rotate_back(rotation, grad_q, table, ctx.width))
    back_k = _norm_backward(k, k_scale, ctx.epsilon, _rotate_back(rotation, grad_k, table, ctx.width))
    return back_q, back_k, *[None] * (ctx.arguments - 2)


def _norm_backward(x: Tensor, scale: Tensor, epsilon: float, grad: Tensor) -> Tensor:
    """Gradient of rms_norm with a frozen scale."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        normal = F.rms_norm(leaf, (x.shape[-1],), scale.to(x.dtype), epsilon)
    return torch.autograd.grad(normal, leaf, grad)[0]


def _setup_adaln(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, float], output: object) -> None:
    x, scale, shift, epsilon = inputs
    ctx.save_for_backward(x.clone(), scale, shift)  # the block adds to x in place
    ctx.epsilon = epsilon


def _adaln(normalise: Callable[..., Tensor], ctx: Context, grad: Tensor) -> Gradients:
    """Gradient of norm(x) * (1 + scale) + shift, recomputed through plain torch."""
    with torch.enable_grad():
        x, scale, shift = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        output = normalise(x, (x.shape[-1],), eps=ctx.epsilon) * (1 + scale) + shift
    return *torch.autograd.grad(output, [x, scale, shift], grad), None


PAIRS, HALVES = "apply_rope1", "apply_rope_split_half1"
FORMULAS: dict[str, tuple[Callable[..., None], Callable[..., Gradients]]] = {
    PAIRS: (_setup_rope1, partial(_rope1, PAIRS)),
    "apply_rope": (_setup_rope, partial(_rope, PAIRS)),
    "rms_rope1": (_setup_rms_rope1, partial(_rms_rope1, PAIRS)),
    "rms_rope": (_setup_rms_rope, partial(_rms_rope, PAIRS)),
    HALVES: (_setup_rope1, partial(_rope1, HALVES)),
    "apply_rope_split_half": (_setup_rope, partial(_rope, HALVES)),
    "rms_rope_split_half1": (_setup_rms_rope1, partial(_rms_rope1, HALVES)),
    "rms_rope_split_half": (_setup_rms_rope, partial(_rms_rope, HALVES)),
    "adaln": (_setup_adaln, partial(_adaln, F.layer_norm)),
    "rms_adaln": (_setup_adaln, partial(_adaln, F.rms_norm)),
}
