"""Gradients of a run's first micro-batch, to compare two ways of computing them. Nothing of it stays."""

from collections.abc import Sequence

from torch import Tensor

from ...seeding import StepKey
from ...training.loop import Training
from ...training.step import train_step
from ..session import Session


def first_gradients(session: Session, training: Training) -> list[Tensor]:
    """Of the adapter's parameters that get one."""
    adapter, batch = training.adapter, session.batches.at(0)
    key = StepKey(seed=session.plan.training.seed, step=0, micro_batch=0)
    adapter.set_draw(key)
    try:
        loss_B = train_step(session.denoiser, batch, session.loss, key, adapter.disabled)
        loss_B.sum().backward()  # type: ignore[no-untyped-call]
        found = [one.grad for one in adapter.parameters().values() if one.grad is not None]
    finally:
        adapter.set_draw(None)
        training.optimizer.zero_grad(set_to_none=True)
    return found


def difference(exact: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Norm of the difference relative to that of the first."""
    if len(exact) != len(other):
        return float("inf")
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(exact, other, strict=True))
    whole = sum(float(a.double().square().sum()) for a in exact)
    return float((apart / max(whole, 1e-30)) ** 0.5)
