"""Executing a session: train from wherever the run stands to its end, with every side effect in order."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..data.prefetch import Prefetched
from ..distributed.processes import telling_of_lost_peers
from ..errors import RunError
from ..lora.adapter import inject
from ..lora.metadata import describe, in_layout
from ..lora.state_dict import max_relative_error, to_file, to_training
from ..storage.fingerprint import tensors_digest
from ..training.early_stopping import is_exhausted, lowest
from ..training.held_out import held_out_losses, mean_loss, rounded
from ..training.loop import Average, LoopSettings, Training, fit
from ..training.optim import make_optimizer
from ..training.schedule import lr_factor
from ..types import StepResult
from ..weights.devices import out_of_memory_remedy, use_device
from .checkpoint import load_checkpoint, prune, save_checkpoint
from .session import Host, Outcome, Session
from .timings import Timings
from .trackers import open_tracker

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Largest relative difference allowed between what a saved file does in a host and what was trained."""


def execute(session: Session, host: Host) -> Outcome:
    """Train to the end, or until the host asks to stop. Raises LoomError; the last checkpoint is kept whatever happens."""
    folder = session.folder
    folder.update(state="running", error="")
    with folder.noting_failure(), telling_of_lost_peers():
        try:
            training = _set_up(session, host)
            outcome = TrainingRun(session, training, host).to_the_end()
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
    if session.training.ema_decay:
        training.average = Average(parameters, session.training.ema_decay)
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


class TrainingRun:
    """A session that is under way, with what is measured of it but decides nothing."""

    def __init__(self, session: Session, training: Training, host: Host) -> None:
        self.session, self.training, self.host = session, training, host
        spent = session.processes.from_main(lambda: session.folder.read().get("costs", {}))
        self.timings = Timings(seconds=dict(spent))
        """Of this session and earlier ones."""
        kind = session.report if session.main else "none"
        self.tracker = open_tracker(kind, session.folder.path, training.step, host.log)

    def to_the_end(self) -> Outcome:
        settings = LoopSettings(
            loss=self.session.loss,
            seed=self.session.training.seed,
            accumulation=self.session.training.gradient_accumulation_steps,
            clip_norm=self.session.optimizer.max_grad_norm,
        )
        total, processes = self.session.training.steps, self.session.processes
        measured = processes.from_main(
            lambda: {line["step"] for line in self.session.folder.read_metrics() if "held_out" in line}
        )
        if self.training.step not in measured and (self.training.step == 0 or self._measures_at(self.training.step)):
            self._measure()  # also what a kill between saving and measuring has left out
        if self.training.step == 0 and self.session.previews is not None and self.session.previews.every:
            self._render()  # the base, to compare with

        def rate_at(step: int) -> float:
            return self.session.optimizer.learning_rate * lr_factor(step, total, self.session.schedule)

        device = next(self.session.denoiser.module.parameters()).device
        ahead = Prefetched(self.session.batches, device, ahead=self.session.prefetch, stride=processes.count)
        with closing(self.tracker), ahead as batches:
            self._take_steps(fit(self.session.denoiser, self.training, batches, settings, rate_at, processes))
        if processes.from_main(self.session.folder.saved_step) != self.training.step:
            self._save()
        early = self._is_enough(self.training.step)
        if early:
            step, loss, since = processes.from_main(lambda: lowest(self.session.folder.read_metrics()))
            self.host.log(
                f"stopped early at step {self.training.step}: the held-out loss was lowest at step {step} ({loss:.5f}) and reached no new low in {since} measurements"
            )
        outcome = self._finish("finished" if early or self.training.step >= total else "stopped")
        self.session.folder.update(costs={what: round(seconds, 2) for what, seconds in self.timings.seconds.items()})
        self.host.log(self.timings.text())
        return outcome

    def _is_enough(self, step: int) -> bool:
        """Whether patience with the held-out loss is at its end; asked where it was measured, equal in all processes."""
        patience = self.session.validation.patience
        if not patience or not (step == 0 or self._measures_at(step)):
            return False
        return self.session.processes.from_main(lambda: is_exhausted(self.session.folder.read_metrics(), patience))

    def _take_steps(self, steps: Iterator[StepResult]) -> None:
        """To the last step, or until the host asks to stop."""
        total, processes = self.session.training.steps, self.session.processes
        enough = self._is_enough(self.training.step)
        while self.training.step < total and not enough and not processes.any(self.host.should_stop()):
            with self.timings.of("training"):
                result = next(steps)
            self.session.folder.append_step(result)
            self.tracker.scalars(
                result.step, {"loss": result.loss, "grad_norm": result.grad_norm, "learning_rate": result.learning_rate}
            )
            self.host.step(result, total)
            last = result.step == total
            self._serve(due=True)
            if self._measures_at(result.step):
                self._measure()
                self._keep_best()
                enough = self._is_enough(result.step)
            while not last and not enough and processes.from_main(self.host.between_steps):
                self._serve(due=False)

    def _serve(self, *, due: bool) -> None:
        """Save and render what is due at this step or was asked for."""
        previews = self.session.previews
        if self.session.processes.any(self.host.should_save()) or (
            due and _due(self.training.step, self.session.training.save_every)
        ):
            self._save()
        if previews is not None and (self.host.should_sample() or (due and _due(self.training.step, previews.every))):
            self._render()

    def _measures_at(self, step: int) -> bool:
        return step == self.session.training.steps or _due(
            step, self.session.validation.every or self.session.training.save_every
        )

    def _save(self) -> None:
        folder = self.session.folder
        tensors = self._file()
        if not self.session.main:
            return
        with self.timings.of("saving"):
            save_checkpoint(folder.checkpoints, self.training)
            path = folder.save_lora(
                tensors, self._metadata(self.training.step, tensors), self.training.step, self.session.publish_folder
            )
            prune(folder.checkpoints, self.session.training.keep_checkpoints)
        folder.update(step=self.training.step, lora=path.name)
        self.host.saved(self.training.step, path)

    def _keep_best(self) -> None:
        """Whoever stops early wants the step before it got worse: with patience, every new low has its LoRA file."""
        folder, step = self.session.folder, self.training.step
        if not self.session.validation.patience or not self.session.processes.from_main(
            lambda: folder.lacks_best(step)
        ):
            return
        tensors = self._file()
        if self.session.main:
            with self.timings.of("saving"):
                self.host.saved(
                    step, folder.save_lora(tensors, self._metadata(step, tensors), step, self.session.publish_folder)
                )

    def _render(self) -> None:
        assert self.session.previews is not None
        with self.timings.of("pictures"):
            pictures = self.session.previews.render(self.training.step)
            if self.training.average is not None and self.training.step:  # before the first step both are the base
                with self._values_of(self.training.average.values):
                    pictures += self.session.previews.render(self.training.step, "ema")
        self.host.sampled(self.training.step, pictures)

    def _file(self) -> dict[str, Tensor]:
        """The LoRA file's tensors, in the layout that was asked for; rounded once, but for float16, whose factors are balanced."""
        layout, dtype = self.session.layout, self.session.lora_dtype
        exact = dtype if layout is None or dtype == torch.float16 else torch.float32
        tensors = to_file(self.training.adapter, self.session.denoiser.file_key, exact, _averaged(self.training))
        return tensors if layout is None else layout.write(tensors, dtype)

    def _metadata(self, step: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        metadata = describe(self.session.network, step=step, **self.session.metadata)
        return in_layout(metadata, self.session.layout.format, tensors) if self.session.layout else metadata

    def _measure(self) -> None:
        """The held-out loss now, of the live adapter and of its average if there is one."""
        if not self.session.held_out.batches or not (self.session.main or self.session.sharded):
            return
        with self.timings.of("held-out loss"):
            parts = held_out_losses(self.session.denoiser, self.session.held_out, self.session.loss.noise_levels)
            values = {"held_out": mean_loss(parts)}
            if self.training.average is not None:
                with self._values_of(self.training.average.values):
                    parts = held_out_losses(
                        self.session.denoiser, self.session.held_out, self.session.loss.noise_levels
                    )
                values["held_out_ema"] = mean_loss(parts)
        # What the LoRA file of this step holds, image by image: `score` compares checkpoints by it.
        self.session.folder.append_metrics(step=self.training.step, **values, held_out_parts=rounded(parts))
        self.tracker.scalars(self.training.step, values)
        self.host.measured(self.training.step, values)

    @contextmanager
    def _values_of(self, values: dict[str, Tensor]) -> Iterator[None]:
        """The adapter with other values for a while."""
        live = {name: parameter.detach().clone() for name, parameter in self.training.adapter.parameters().items()}
        self.training.adapter.load(values)
        try:
            yield
        finally:
            self.training.adapter.load(live)

    def _finish(self, state: str) -> Outcome:
        """The last LoRA file under its plain name, checked against what a host will compute from it."""
        tensors = self._file()
        read = self.session.layout.read(tensors) if self.session.layout else tensors
        error, where = max_relative_error(
            self.training.adapter,
            self.session.denoiser.file_key,
            read,
            _averaged(self.training),
            self.session.arithmetic,
        )
        if not error <= AGREEMENT[self.session.lora_dtype]:
            raise RunError(
                f"the LoRA file would act differently than it was trained: {error:.2e} in {where}; set output.dtype = 'float32' and report this"
            )
        path = self.session.folder.save_lora(
            tensors, self._metadata(self.training.step, tensors), None, self.session.publish_folder
        )
        self.session.processes.wait()
        self.host.log(
            f"{len(self.session.targets)} modules saved, 0 keys unmatched; the file's effect agrees with training to {error:.1e}"
        )
        self.host.saved(self.training.step, path)
        if best := self.session.processes.from_main(self.session.folder.recommended):
            self.host.log(f"by the held-out loss: {best['lora']}. {best['reason']}. How sure that is: sweep and score")
        return Outcome(state=state, step=self.training.step, lora=path, max_relative_error=error, best=best)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _averaged(training: Training) -> dict[str, Tensor] | None:
    return training.average.values if training.average else None
