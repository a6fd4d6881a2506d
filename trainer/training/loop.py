"""The training loop: a generator of finished steps. Pausing, saving and stopping is leaving it; `runs/execute.py` acts."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..diffusion.denoiser import Denoiser
from ..distributed.processes import ALONE, Processes
from ..errors import DivergedError
from ..lora.adapter import Adapter
from ..seeding import StepKey
from ..types import Batch, StepResult
from ..weights.devices import give_back, out_of_memory
from ..weights.recompute import recomputation_of
from .optim import clip_gradients, own_average, set_learning_rate
from .step import LossSettings, Switch, preservation_loss, slider_loss, train_step

_Sums: TypeAlias = tuple[float, float | None]
"""The loss of a step, and what holding to the base's prediction adds to it."""


class Batches(Protocol):
    """All micro-batches of a run, by position; the same position always gives the same batch."""

    def size(self, position: int) -> int:
        """Number of samples, without loading them."""
        ...

    def at(self, position: int) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The settings of the optimizer steps: loss, seed, gradient accumulation and clipping of the gradient."""

    loss: LossSettings
    seed: int
    accumulation: int = 1
    clip_norm: float = 1.0
    weight_norm: float = 0.0
    """Largest norm of a module's change, to which it is scaled down after a step; 0 sets none."""


class Average:
    """Exponential moving average of the adapter, fp32: decay min((1 + n) / (10 + n), d) after n steps, `auto_decay` for "auto"."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float | Literal["auto"]) -> None:
        self.decay = decay
        self.stands_alone = decay == "auto"
        """Whether it is measured and sampled in place of the weights that are trained, and not beside them."""
        self.values = {name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """`step` counts the finished steps, this one included."""
        decay = auto_decay(step) if self.decay == "auto" else min((1 + step) / (10 + step), self.decay)
        now = [parameters[name].detach() for name in self.values]
        if all(value.dtype == torch.float32 for value in now):
            torch._foreach_lerp_(
                list(self.values.values()), now, 1 - decay
            )  # a thousand small tensors at once on a GPU
            return
        for name, value in self.values.items():
            value.lerp_(parameters[name].to(value.dtype), 1 - decay)


AVERAGED_FROM = 100
"""Steps before the average of `auto_decay` begins: while a run learns fast, an average lags behind what it has learnt."""


def auto_decay(step: int) -> float:
    """m / (m + 9) with m steps since `AVERAGED_FROM`: an average over about the last ninth of these, however long a run becomes.

    0 before, so that the average is the weights. A decay that grows with the steps as in arXiv 2312.02696 (3.1).
    """
    since = max(step - AVERAGED_FROM, 0)
    return since / (since + 9)


@dataclass(kw_only=True)
class Training:
    """Everything that changes while a run trains; what a checkpoint holds."""

    adapter: Adapter
    optimizer: Optimizer
    average: Average | None = None
    scaler: Any = None
    """torch.amp.GradScaler for float16 arithmetic, else None."""
    step: int = 0
    """Finished steps."""

    @property
    def shows_both(self) -> bool:
        """Whether an average is measured and sampled beside the weights that are trained."""
        return self.average is not None and not self.average.stands_alone

    @property
    def stand_in(self) -> dict[str, Tensor] | None:
        """What is measured and sampled in place of the trained weights: an average that stands alone, or that of a schedule-free optimizer."""
        if self.average is not None and self.average.stands_alone:
            return self.average.values
        return own_average(self.optimizer, self.adapter.parameters())


def fit(
    denoiser: Denoiser,
    training: Training,
    batches: Batches,
    settings: LoopSettings,
    rate_at: Callable[[int], float],
    processes: Processes = ALONE,
    between_passes: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda text: None,
) -> Iterator[StepResult]:
    """Take one optimizer step per item, for ever. Raises DivergedError before a bad step is taken.

    `between_passes` is called between the micro-batches of a step and may block; that time is not the step's. A step whose memory runs
    out is taken again with checkpointing where that is at rest: the numbers are the same. `say` takes a sentence about it.
    """
    held = Held(between_passes)
    while True:
        held.seconds, started = 0.0, time.perf_counter()
        passes = partial(_accumulate, denoiser, training, batches, settings, processes, held)
        loss, kept = found if (found := _unless_full(passes, denoiser)) else _again(passes, training, say)
        norm = _finite_norm(training, loss + (kept or 0.0), settings.clip_norm)
        rate = set_learning_rate(training.optimizer, rate_at(training.step))
        _move(training)
        scaled = training.adapter.scale_norms(settings.weight_norm) if settings.weight_norm else None
        training.step += 1
        if training.average is not None:
            training.average.update(training.adapter.parameters(), training.step)
        seconds = time.perf_counter() - started - held.seconds
        measured = StepResult(step=training.step, loss=loss, grad_norm=norm, learning_rate=rate, seconds=seconds)
        yield replace(measured, keys_scaled=scaled, preservation=kept)


def _unless_full(passes: Callable[[], _Sums], denoiser: Denoiser) -> _Sums | None:
    """None where memory has run out and there is less to keep: blocks are recomputed from then on."""
    try:
        return passes()
    except Exception as error:
        recompute = recomputation_of(denoiser.module) if out_of_memory(error) else None
        if recompute is None or not recompute.wake():
            raise
    return None


def _again(passes: Callable[[], _Sums], training: Training, say: Callable[[str], object]) -> _Sums:
    """The passes of a step once more. The error is gone by now, and with its frames what the pass held."""
    training.optimizer.zero_grad(set_to_none=True)
    give_back()
    say("memory ran out without checkpointing: blocks are recomputed from here on (the LoRA is the same)")
    return passes()


class Held:
    """Calls a function that may block, and counts the seconds."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait, self.seconds = wait, 0.0

    def __call__(self) -> None:
        started = time.perf_counter()
        self._wait()
        self.seconds += time.perf_counter() - started


def _accumulate(
    denoiser: Denoiser,
    training: Training,
    batches: Batches,
    settings: LoopSettings,
    processes: Processes,
    between_passes: Callable[[], None],
) -> tuple[float, float | None]:
    """Gradients of the mean loss over all samples of the step, that loss, and what holding to the base's prediction adds to it.

    The latter is None where no sample is held. The micro-batches of a step are dealt out to the processes in turn: the step is that of one process which takes them all.
    """
    count = settings.accumulation * processes.count
    first = training.step * count
    samples = sum(batches.size(first + i) for i in range(count))
    total, kept = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    count_kept = 0

    def backward(loss: Tensor) -> Tensor:
        (loss if training.scaler is None else training.scaler.scale(loss)).backward()
        return loss.detach().double().cpu()

    try:
        for micro_batch in range(processes.rank, count, processes.count):
            if micro_batch != processes.rank:
                between_passes()
            key = StepKey(seed=settings.seed, step=training.step, micro_batch=micro_batch)
            training.adapter.set_draw(key)
            batch, off = batches.at(first + micro_batch), training.adapter.disabled
            for strength, loss_of in _losses(denoiser, batch, settings.loss, key, off):
                with training.adapter.at_strength(strength):  # backward too: it may recompute
                    total = total + backward(loss_of().sum() / samples)
            if batch.preserved is not None:
                kept = kept + backward(preservation_loss(denoiser, batch, settings.loss, key, off).sum() / samples)
                count_kept += len(batch.preserved.slots)
    finally:
        training.adapter.set_draw(None)
    processes.sum_gradients(training.adapter.parameters().values())
    is_any = processes.sum(float(count_kept)) > 0
    return processes.sum(float(total)), processes.sum(float(kept)) if is_any else None


def _losses(
    denoiser: Denoiser, batch: Batch, settings: LossSettings, place: StepKey, without_adapter: Switch
) -> list[tuple[float, Callable[[], Tensor]]]:
    """What a batch is trained by: (strength of the adapter, weighted loss of each sample (B,)). A slider of prompts has two halves."""
    if batch.slider is None:
        return [(batch.strength, partial(train_step, denoiser, batch, settings, place, without_adapter))]
    loss_at = slider_loss(denoiser, batch, settings, place, without_adapter)
    return [(sign, lambda sign=sign: loss_at(sign) / 2) for sign in (1.0, -1.0)]  # type: ignore[misc]


def _finite_norm(training: Training, loss: float, limit: float) -> float:
    """Clip, and make sure that loss and gradients are finite numbers before the optimizer moves."""
    if training.scaler is not None:
        training.scaler.unscale_(training.optimizer)
    norm = float(clip_gradients(training.adapter.parameters().values(), limit))
    scale_may_fall = training.scaler is not None and training.scaler.get_scale() > 1
    if not math.isfinite(loss) or not (math.isfinite(norm) or scale_may_fall):
        training.optimizer.zero_grad(set_to_none=True)
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        raise DivergedError(
            f"{what} in step {training.step + 1}: lower optimizer.learning_rate, or set training.precision to bfloat16 or float32"
        )
    return norm


def _move(training: Training) -> None:
    if training.scaler is None:
        training.optimizer.step()
    else:  # skips the step by itself while it looks for a scale without overflow
        training.scaler.step(training.optimizer)
        training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
