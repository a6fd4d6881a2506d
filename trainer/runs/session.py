"""Training one run from wherever it stands to its end: every side effect of training, in order.

Both backends end here: the command line through `run.py`, ComfyUI through its nodes. What differs between them (how a
network and its batches come about, who is told) is in `Session` and `Host`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.run import NetworkConfig, OptimizerConfig, ScheduleConfig, TrainingConfig, ValidationConfig
from ..data.prefetch import Prefetched
from ..diffusion.denoiser import Denoiser
from ..distributed.processes import ALONE, Processes, telling_of_lost_peers
from ..errors import RunError
from ..lora.adapter import inject
from ..lora.state_dict import Arithmetic, to_file, to_training, worst_disagreement, written_out
from ..storage.fingerprint import tensors_digest
from ..training.early_stopping import Costs, is_exhausted, lowest
from ..training.held_out import HeldOut, held_out_losses, mean_loss, rounded
from ..training.loop import Average, Batches, LoopSettings, Training, fit
from ..training.optim import make_optimizer
from ..training.schedule import lr_factor
from ..training.step import LossSettings
from ..types import StepResult
from ..weights.devices import out_of_memory_remedy, use_device
from .checkpoint import load_checkpoint, prune, save_checkpoint
from .run_folder import RunFolder
from .trackers import open_tracker

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Largest relative difference allowed between what a saved file does in a host and what was trained."""


class Host(Protocol):
    """Whoever runs a session: told of everything, asked whether to go on."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Progress of something before or after training."""
        ...

    def step(self, result: StepResult, total: int) -> None: ...

    def log(self, text: str) -> None: ...

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """A held-out loss was measured."""
        ...

    def saved(self, step: int, lora: Path) -> None: ...

    def sampled(self, step: int, pictures: Sequence[Path]) -> None: ...

    def between_steps(self) -> bool:
        """Called after every step; may block, e.g. while the host is busy. True: something is asked for, call again after."""
        ...

    def should_stop(self) -> bool:
        """Asked before every step; True saves a checkpoint and ends the session."""
        ...

    def should_save(self) -> bool:
        """Asked after every step; True saves a checkpoint and goes on."""
        ...

    def should_sample(self) -> bool:
        """Asked after every step; True renders the validation prompts and goes on."""
        ...


class Layout(Protocol):
    """Another program's names for a LoRA file."""

    @property
    def format(self) -> str: ...

    def write(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]: ...

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same adapter under the names that are trained."""
        ...


class Previews(Protocol):
    """Renders the validation prompts with the adapter as it is."""

    @property
    def every(self) -> int:
        """Steps between renderings; 0 only on request."""
        ...

    def render(self, step: int, kind: str = "") -> list[Path]:
        """Pictures of the adapter as it is; `kind` goes into their names."""
        ...


@dataclass(kw_only=True)
class Session:
    folder: RunFolder
    denoiser: Denoiser
    targets: list[str]
    batches: Batches
    held_out: HeldOut
    loss: LossSettings
    network: NetworkConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    validation: ValidationConfig
    compute_dtype: torch.dtype
    lora_dtype: torch.dtype
    metadata: Mapping[str, Any]
    """Arguments of `lora.metadata.describe` that are known before training."""
    also: Path | None = None
    """Folder where LoRA files appear too, e.g. models/loras/lora_loom."""
    report: str = "none"
    """Where curves are also written: none, tensorboard or wandb."""
    prefetch: int = 1
    """Batches that are read while a step computes."""
    previews: Previews | None = None
    init: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of a LoRA file to start from."""
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    """{beginning of module paths: factor on the learning rate}."""
    layout: "Layout | None" = None
    """Another layout for the LoRA files than the one that is trained in."""
    arithmetic: Arithmetic = written_out
    """What a host computes from a LoRA file; inside ComfyUI it is ComfyUI itself."""
    processes: Processes = ALONE
    """All processes execute equal sessions; those of the others have an `Onlooker` as folder."""
    sharded: bool = False
    """The base is split over the processes: none can compute without the others."""

    @property
    def main(self) -> bool:
        return self.processes.rank == 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    state: str
    """finished or stopped."""
    step: int
    lora: Path
    """The last LoRA file."""
    disagreement: float
    """Largest relative difference between the file's effect in a host and the trained one."""
    best: Mapping[str, Any] | None = None
    """Step, loss, LoRA file, runner-up and reason of what the held-out loss recommends; none without measurements."""


def execute(session: Session, host: Host) -> Outcome:
    """Train to the end, or until the host asks to stop. Raises LoomError; the last checkpoint is kept whatever happens."""
    folder = session.folder
    folder.update(state="running", error="")
    with folder.noting_failure(), telling_of_lost_peers():
        try:
            training = _set_up(session, host)
            outcome = _train(session, training, host)
        except torch.cuda.OutOfMemoryError as error:
            raise RunError(f"out of GPU memory: {out_of_memory_remedy()}") from error
    folder.update(**{**vars(outcome), "lora": outcome.lora.name})
    return outcome


def _set_up(session: Session, host: Host) -> Training:
    """Adapter and optimizer, fresh or as the last checkpoint holds them."""
    use_device(next(session.denoiser.module.parameters()).device)
    adapter = inject(
        session.denoiser.module,
        session.targets,
        session.network,
        seed=session.training.seed,
        compute_dtype=session.compute_dtype,
    )
    if session.init:
        adapter.load(to_training(adapter, session.denoiser.file_key, session.init))
    parameters = adapter.parameters()
    training = Training(adapter=adapter, optimizer=_optimizer(session, parameters))
    if session.training.ema:
        training.average = Average(parameters, session.training.ema)
    if session.compute_dtype == torch.float16:
        training.scaler = torch.amp.GradScaler(next(iter(parameters.values())).device.type)
    count = sum(parameter.numel() for parameter in parameters.values())
    host.log(f"{session.network.kind} on {len(session.targets)} modules, {count:,} trained parameters")
    if checkpoint := session.folder.last_checkpoint():
        load_checkpoint(checkpoint, training)
        host.log(f"continuing from step {training.step}")
    session.folder.cut_metrics(training.step)
    if session.processes.count > 1:
        session.processes.require_same("adapter", f"{training.step} {tensors_digest(parameters)}")
    return training


def _optimizer(session: Session, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
    plain = [p for name, p in parameters.items() if not name.startswith(tuple(session.rate_scales))]
    groups = [
        (factor, [p for name, p in parameters.items() if name.startswith(start)])
        for start, factor in session.rate_scales.items()
    ]
    return make_optimizer(plain, session.optimizer, groups)


def _train(session: Session, training: Training, host: Host) -> Outcome:
    settings = LoopSettings(
        loss=session.loss,
        seed=session.training.seed,
        accumulation=session.training.accumulation,
        clip_norm=session.optimizer.clip_norm,
    )
    total, processes = session.training.steps, session.processes
    training.costs = Costs(seconds=dict(processes.from_main(lambda: session.folder.read().get("costs", {}))))
    kind = session.report if session.main else "none"
    training.tracker = open_tracker(kind, session.folder.path, training.step, host.log)
    measured = processes.from_main(
        lambda: {line["step"] for line in session.folder.read_metrics() if "held_out" in line}
    )
    if training.step not in measured and (training.step == 0 or _measures_at(session, training.step)):
        _measure(session, training, host)  # also what a kill between saving and measuring has left out
    if training.step == 0 and session.previews is not None and session.previews.every:
        _render(session, training, host)  # the base, to compare with

    def rate_at(step: int) -> float:
        return session.optimizer.learning_rate * lr_factor(step, total, session.schedule)

    device = next(session.denoiser.module.parameters()).device
    ahead = Prefetched(session.batches, device, ahead=session.prefetch, stride=processes.count)
    with closing(training.tracker), ahead as batches:
        _take_steps(session, training, host, fit(session.denoiser, training, batches, settings, rate_at, processes))
    if processes.from_main(session.folder.saved_step) != training.step:
        _save(session, training, host)
    early = _is_enough(session, training.step)
    if early:
        step, loss, since = processes.from_main(lambda: lowest(session.folder.read_metrics()))
        host.log(
            f"stopped early at step {training.step}: the held-out loss was lowest at step {step} ({loss:.5f}) and reached no new low in {since} measurements"
        )
    outcome = _finish(session, training, host, "finished" if early or training.step >= total else "stopped")
    session.folder.update(costs={what: round(seconds, 2) for what, seconds in training.costs.seconds.items()})
    host.log(training.costs.text())
    return outcome


def _is_enough(session: Session, step: int) -> bool:
    """Whether patience with the held-out loss is at its end; asked where it was measured, equal in all processes."""
    patience = session.validation.patience
    if not patience or not (step == 0 or _measures_at(session, step)):
        return False
    return session.processes.from_main(lambda: is_exhausted(session.folder.read_metrics(), patience))


def _take_steps(session: Session, training: Training, host: Host, steps: Iterator[StepResult]) -> None:
    """To the last step, or until the host asks to stop."""
    total, processes = session.training.steps, session.processes
    enough = _is_enough(session, training.step)
    while training.step < total and not enough and not processes.any(host.should_stop()):
        with training.costs.of("training"):
            result = next(steps)
        session.folder.append_step(result)
        training.tracker.scalars(
            result.step, {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
        )
        host.step(result, total)
        last = result.step == total
        _serve(session, training, host, due=True)
        if _measures_at(session, result.step):
            _measure(session, training, host)
            _keep_low(session, training, host)
            enough = _is_enough(session, result.step)
        while not last and not enough and processes.from_main(host.between_steps):
            _serve(session, training, host, due=False)


def _serve(session: Session, training: Training, host: Host, *, due: bool) -> None:
    """Save and render what is due at this step or was asked for."""
    previews = session.previews
    if session.processes.any(host.should_save()) or (due and _due(training.step, session.training.save_every)):
        _save(session, training, host)
    if previews is not None and (host.should_sample() or (due and _due(training.step, previews.every))):
        _render(session, training, host)


def _measures_at(session: Session, step: int) -> bool:
    return step == session.training.steps or _due(step, session.validation.every or session.training.save_every)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save(session: Session, training: Training, host: Host) -> None:
    folder = session.folder
    tensors = _file(session, training)
    if not session.main:
        return
    with training.costs.of("saving"):
        save_checkpoint(folder.checkpoints, training)
        path = folder.save_lora(tensors, _metadata(session, training.step, tensors), training.step, session.also)
        prune(folder.checkpoints, session.training.keep)
    folder.update(step=training.step, lora=path.name)
    host.saved(training.step, path)


def _keep_low(session: Session, training: Training, host: Host) -> None:
    """Whoever stops early wants the step before it got worse: with patience, every new low has its LoRA file."""
    folder, step = session.folder, training.step
    if not session.validation.patience or not session.processes.from_main(lambda: folder.lacks_low(step)):
        return
    tensors = _file(session, training)
    if session.main:
        with training.costs.of("saving"):
            host.saved(step, folder.save_lora(tensors, _metadata(session, step, tensors), step, session.also))


def _render(session: Session, training: Training, host: Host) -> None:
    assert session.previews is not None
    with training.costs.of("pictures"):
        pictures = session.previews.render(training.step)
        if training.average is not None and training.step:  # before the first step both are the base
            with _values_of(training, training.average.values):
                pictures += session.previews.render(training.step, "ema")
    host.sampled(training.step, pictures)


def _averaged(training: Training) -> dict[str, Tensor] | None:
    return training.average.values if training.average else None


def _file(session: Session, training: Training) -> dict[str, Tensor]:
    """The LoRA file's tensors, in the layout that was asked for; rounded once, but for float16, whose factors are balanced."""
    layout, dtype = session.layout, session.lora_dtype
    exact = dtype if layout is None or dtype == torch.float16 else torch.float32
    tensors = to_file(training.adapter, session.denoiser.file_key, exact, _averaged(training))
    return tensors if layout is None else layout.write(tensors, dtype)


def _metadata(session: Session, step: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    from ..lora.metadata import describe, in_layout

    metadata = describe(session.network, step=step, **session.metadata)
    return in_layout(metadata, session.layout.format, tensors) if session.layout else metadata


def _measure(session: Session, training: Training, host: Host) -> None:
    """The held-out loss now, of the live adapter and of its average if there is one."""
    if not session.held_out.batches or not (session.main or session.sharded):
        return
    with training.costs.of("held-out loss"):
        parts = held_out_losses(session.denoiser, session.held_out, session.loss.noise_levels)
        values = {"held_out": mean_loss(parts)}
        if training.average is not None:
            with _values_of(training, training.average.values):
                parts = held_out_losses(session.denoiser, session.held_out, session.loss.noise_levels)
            values["held_out_ema"] = mean_loss(parts)
    # What the LoRA file of this step holds, image by image: `score` compares checkpoints by it.
    session.folder.append_metrics(step=training.step, **values, held_out_parts=rounded(parts))
    training.tracker.scalars(training.step, values)
    host.measured(training.step, values)


@contextmanager
def _values_of(training: Training, values: dict[str, Tensor]) -> Iterator[None]:
    """The adapter with other values for a while."""
    live = {name: parameter.detach().clone() for name, parameter in training.adapter.parameters().items()}
    training.adapter.load(values)
    try:
        yield
    finally:
        training.adapter.load(live)


def _finish(session: Session, training: Training, host: Host, state: str) -> Outcome:
    """The last LoRA file under its plain name, checked against what a host will compute from it."""
    tensors = _file(session, training)
    read = session.layout.read(tensors) if session.layout else tensors
    error, where = worst_disagreement(
        training.adapter, session.denoiser.file_key, read, _averaged(training), session.arithmetic
    )
    if not error <= AGREEMENT[session.lora_dtype]:
        raise RunError(
            f"the LoRA file would act differently than it was trained: {error:.2e} in {where}; set output.dtype = 'float32' and report this"
        )
    path = session.folder.save_lora(tensors, _metadata(session, training.step, tensors), None, session.also)
    session.processes.wait()
    host.log(
        f"{len(session.targets)} modules saved, 0 keys unmatched; the file's effect agrees with training to {error:.1e}"
    )
    host.saved(training.step, path)
    if best := session.processes.from_main(session.folder.recommended):
        host.log(f"by the held-out loss: {best['lora']}. {best['reason']}. How sure that is: sweep and score")
    return Outcome(state=state, step=training.step, lora=path, disagreement=error, best=best)
