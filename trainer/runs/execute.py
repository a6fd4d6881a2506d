"""Executing a session: train from wherever the run stands to its end, with every side effect in order."""

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..data.prefetch import Prefetched
from ..data.sample_scores import scalars_of, scores_text
from ..distributed.processes import reporting_lost_peers
from ..doctor.report import cost_text, examine_run, text_of
from ..doctor.report import is_due as is_examined
from ..errors import StoppedError
from ..lora.metadata import describe, in_layout
from ..lora.state_dict import to_file
from ..storage.atomic import remove_temporaries
from ..training.advice import advice
from ..training.early_stopping import is_exhausted, keeps_lows, lowest
from ..training.held_out import Drift, held_out_losses, losses_at_even_levels, mean_loss, rounded
from ..training.loop import Batches, LoopSettings, Training, fit
from ..training.movement import WATCHED_STEPS, GradientWatch
from ..training.rate import usual_rates
from ..training.schedule import fall_begins, lr_factor
from ..training.verdict import growth, growth_text
from ..types import StepResult
from ..weights.streaming import device_of, stream_of
from .assemble import set_up
from .checkpoint import prune, save_checkpoint
from .final_file import checked_error, checked_movement, push_finished, take_best
from .plan import is_due
from .session import Host, Outcome, SampleRenderer, Session, naming_what_is_kept
from .timings import Timings, at_step
from .trackers import NoTracker, Tracker, open_tracker


def execute(session: Session, host: Host) -> Outcome:
    """Train to the end, or until the host asks to stop. Raises LoomError; the last checkpoint is kept whatever happens."""
    folder = session.folder
    below = session.plan.base_loras
    folder.update(state="running", error="", **({"base_loras": [one.record() for one in below]} if below else {}))
    with folder.noting_failure(), naming_what_is_kept(folder, host), reporting_lost_peers():
        try:
            for one in below:
                host.log(one.text())
            session, training = set_up(session, host)
            whole, plan = session.backend.model_file is not None, session.plan
            usual = None if whole else usual_rates(session.denoiser.module, plan.network, plan.optimizer)
            for note in advice(plan.optimizer, plan.schedule, plan.training.steps, whole=whole, usual=usual):
                host.log(f"note: {note}")
            outcome = TrainingRun(session, training, host).to_the_end()
        finally:
            if stream := stream_of(session.denoiser.module):
                stream.close()
    folder.update(**{**vars(outcome), "lora": outcome.lora.name})
    if session.main and outcome.state == "finished":
        push_finished(folder, session.plan.output, host.log)
    return outcome


class TrainingRun:
    """A session under way: takes its steps and, between them, measures, saves and samples."""

    def __init__(self, session: Session, training: Training, host: Host) -> None:
        self.session, self.training, self.host = session, training, host
        self.plan, self.folder, self.processes = session.plan, session.folder, session.processes
        self.total = self.plan.training.steps
        self.timings = Timings.continued(self.processes.from_main(lambda: self.folder.read().get("costs", {})))
        whole = session.backend.model_file is not None
        self.drift = Drift(denoiser=session.denoiser, held_out=session.held_out, has_base=not whole)
        self.watch = GradientWatch(training.adapter.parameters(), training.optimizer, moves=not whole)
        self.tracker: Tracker = NoTracker()
        if session.main:
            self.tracker = open_tracker(self.plan.output, self.folder.path, training.step, host.log)

    def to_the_end(self) -> Outcome:
        """Train until the last step, an early stop or the host's wish, and write what is left to write."""
        self._catch_up()
        ahead = Prefetched(
            self.session.batches,
            device_of(self.session.denoiser.module),
            ahead=self.plan.memory.prefetch,
            stride=self.processes.count,
        )
        with closing(self.tracker), ahead as batches:
            self._take_steps(self._steps(batches))
        step = self.training.step
        if step == 0:
            raise StoppedError("stopped before the first step: there is nothing to save yet; run it again to go on")
        if self.processes.from_main(self.folder.saved_step) != step:
            self._save()
        early = self._is_exhausted()
        if early:
            self._log_early_stop()
        outcome = self._finish("finished" if early or step >= self.total else "stopped")
        self.folder.update(costs={what: round(seconds, 2) for what, seconds in self.timings.seconds.items()})
        self.host.log(self.timings.text())
        if (stream := stream_of(self.session.denoiser.module)) and stream.ring:
            self.host.log(stream.work_done())
        return outcome

    def _catch_up(self) -> None:
        """Measure and sample the base; after a kill also whatever it left undone of the step that was saved last."""
        step, samples = self.training.step, self.session.samples
        self._complete_save()
        measured = self.processes.from_main(
            lambda: {line["step"] for line in self.folder.read_metrics() if "held_out" in line}
        )
        if step not in measured and (step == 0 or self.plan.measures_at(step)):
            self._measure()
        if step:
            self._keep_best()
        if self.processes.from_main(lambda: self._lacks_samples(step)) and samples is not None:
            self._sample()
        self._examine()

    def _complete_save(self) -> None:
        """What `_save` does after the checkpoint, as far as a kill has left it undone: the checkpoint alone says that it is due."""
        step, publish = self.training.step, self.session.publish_folder
        is_saved = self.processes.from_main(lambda: self.folder.saved_step() == step)
        lacks_lora = is_saved and self.processes.from_main(lambda: self.folder.lacks_lora(step, publish))
        tensors = self._file() if lacks_lora else {}
        if not self.session.main:
            return
        if publish is not None:
            remove_temporaries(publish / self.folder.name)
        if lacks_lora:
            self.host.saved(step, self._write(tensors, step, only_missing=True))
        if is_saved:
            self._prune()
            self.folder.update(step=step, lora=self.folder.lora_file(step).name)

    def _lacks_samples(self, step: int) -> bool:
        """Whether samples are due at this step and not all of them are there. Those of the base are made again at every start."""
        samples = self.session.samples
        if samples is None or not is_due(step, samples.every):
            return False
        return step == 0 or not all(
            path.is_file() for kind in self._sample_kinds() for path in samples.paths(step, kind)
        )

    def _sample_kinds(self) -> list[str]:
        """Names of the weights that samples are made with; before the first step the average is the base too."""
        return ["", "ema"] if self.training.shows_both and self.training.step else [""]

    def _steps(self, batches: Batches) -> Iterator[StepResult]:
        """The training loop: one optimizer step per item."""
        settings = LoopSettings(
            loss=self.session.loss,
            seed=self.plan.training.seed,
            accumulation=self.plan.training.gradient_accumulation_steps,
            clip_norm=self.plan.optimizer.max_grad_norm,
            weight_norm=self.plan.network.scale_weight_norms,
        )

        def rate_at(step: int) -> float:
            return self.plan.optimizer.rate * lr_factor(step, self.total, self.plan.schedule)

        around = self.processes, self._is_interrupted, self.host.log
        return fit(self.session.denoiser, self.training, batches, settings, rate_at, *around)

    def _is_interrupted(self) -> bool:
        """Let the host have the machine for a while; whether it asks for a stop. Several processes stop between steps only."""
        return self.processes.count == 1 and self.host.between_passes()

    def _end_if_interrupted(self) -> bool:
        """Raises StoppedError: half a measurement is none."""
        if self._is_interrupted():
            raise StoppedError("stopped while measuring")
        return False

    def _take_steps(self, steps: Iterator[StepResult]) -> None:
        """To the last step, or until the host asks to stop."""
        enough = self._is_exhausted()
        while self.training.step < self.total and not enough and not self.processes.any(self.host.should_stop()):
            with self.timings.of("training"):
                result = next(steps)
            self.session.backend.check_files()
            self._report(result)
            self._serve(due=True)
            if self.plan.measures_at(result.step):
                self._measure()
                self._keep_best()
                enough = self._is_exhausted()
            self._examine()
            last = result.step == self.total
            while not last and not enough and self.processes.from_main(self.host.between_steps):
                self._serve(due=False)

    def _report(self, result: StepResult) -> None:
        beside = at_step(self.session.batches, self.session.denoiser.module, result.step)
        self.folder.append_step(result, beside)
        self.tracker.scalars(result.step, {**result.scalars(), **beside})
        self.host.step(result, self.total)
        if result.step == min(WATCHED_STEPS, self.total) and (text := self._watched()):
            self.host.log(text)

    def _serve(self, *, due: bool) -> None:
        """Save and sample what is due at this step or was asked for."""
        step, samples = self.training.step, self.session.samples
        wanted = self.processes.any(self.host.should_save())
        if wanted or (due and self.plan.saves_at(step)):
            self._save()
        if samples is not None and (self.host.should_sample() or (due and is_due(step, samples.every))):
            self._sample()

    def _is_exhausted(self) -> bool:
        """Whether patience with the validation loss is at its end, asked where it was measured; equal in all processes."""
        step, patience = self.training.step, self.plan.validation.patience
        if not patience or not (step == 0 or self.plan.measures_at(step)):
            return False
        return self.processes.from_main(lambda: is_exhausted(self.folder.read_metrics(), patience))

    def _log_early_stop(self) -> None:
        step, loss, since = self.processes.from_main(lambda: lowest(self.folder.read_metrics()))
        self.host.log(
            f"stopped early at step {self.training.step}: the validation loss was lowest at step {step} ({loss:.5f}) "
            f"and reached no new low in {since} measurements"
        )

    def _measure(self) -> None:
        """The validation loss now, of the current weights and of their average if there is one."""
        if not self.session.held_out.batches or not (self.session.main or self.plan.memory.shard):
            return
        try:
            with self.timings.of("validation loss"):
                with self.training.adapter.holding(self.training.stand_in):
                    parts, values = self._losses("")
                if self.training.shows_both:
                    with self.training.adapter.holding(self._averaged):
                        parts, of_average = self._losses("_ema")
                    values |= of_average
                values |= self.drift.values(self.training.adapter, self._averaged, self._end_if_interrupted)
        except StoppedError:
            return  # it is measured when the run is continued
        self.folder.update(drift=values.get("drift"))  # first: a line of metrics says that all of this is done
        # What the LoRA file of this step holds, image by image: `score` compares checkpoints by it.
        self.folder.append_metrics(step=self.training.step, **values, held_out_parts=rounded(parts))
        self.tracker.scalars(self.training.step, values)
        self.host.measured(self.training.step, {**values, **self._loss_of_base()})

    def _examine(self) -> None:
        """What the data doctor says of the training images, once, when the run has reached the step for it."""
        session, step, path = self.session, self.training.step, self.folder.path
        wanted = session.main and self.plan.validation.doctor and not self.plan.memory.shard
        if not wanted or not is_examined(path, step, session.batches, self.plan.training):
            return
        self.host.log(cost_text(session.batches))
        network = (session.denoiser, self.training.adapter, session.batches, session.held_out.levels)
        with suppress(StoppedError), self.timings.of("data doctor"):
            progress = partial(self.host.stage, "data doctor")
            self.host.log(text_of(examine_run(path, step, *network, progress, self._end_if_interrupted)))

    def _loss_of_base(self) -> dict[str, float]:
        """What the validation loss was before the first step, to be read next to a later one."""
        first = (line for line in self.folder.read_metrics() if line["step"] == 0 and "held_out" in line)
        line = next(first, None) if self.training.step else None
        return {"held_out_base": line["held_out"]} if line else {}

    def _losses(self, suffix: str) -> tuple[list[list[float]], dict[str, float]]:
        """Validation losses of the values that the adapter has now, by image and level; their means, under the names of the metrics."""
        denoiser, held_out = self.session.denoiser, self.session.held_out
        parts = held_out_losses(denoiser, held_out, should_stop=self._end_if_interrupted)
        values = {f"held_out{suffix}": mean_loss(parts)}
        if (even := losses_at_even_levels(denoiser, held_out, parts, self._end_if_interrupted)) is not None:
            values[f"held_out_even{suffix}"] = mean_loss(even)
        return parts, values

    def _sample(self) -> None:
        samples = self.session.samples
        assert samples is not None
        with self.timings.of("samples"), self.session.backend.base_loras.as_used():
            with self.training.adapter.holding(self.training.stand_in):
                files = self._rendered(samples, "")
            if "ema" in self._sample_kinds():
                with self.training.adapter.holding(self._averaged):
                    files += self._rendered(samples, "ema")
        if scores := self.session.scores.of(files):
            self.folder.append_metrics(step=self.training.step, **scores)
            self.tracker.scalars(self.training.step, scalars_of(scores))
            self.host.log(f"step {self.training.step}: {scores_text(scores)}")
        self.host.sampled(self.training.step, files)

    def _rendered(self, samples: SampleRenderer, kind: str) -> list[Path]:
        adapter, file_key = self.training.adapter, self.session.denoiser.file_key
        with samples.using(lambda: to_file(adapter, file_key, torch.float32)):
            return samples.render(self.training.step, kind, self._is_interrupted)

    def _save(self) -> None:
        step, tensors = self.training.step, self._file()
        if not self.session.main:
            return
        with self.timings.of("saving"):
            save_checkpoint(self.folder.checkpoints, self.training)
            path = self._write(tensors, step)
            self._prune()
        self.folder.update(step=step, lora=path.name)
        self.host.saved(step, path)

    def _prune(self) -> None:
        training = self.plan.training
        prune(self.folder.checkpoints, training.keep_checkpoints, fall_begins(self.total, self.plan.schedule))
        self.folder.prune_loras(training.keep_loras, self.session.publish_folder)

    def _keep_best(self) -> None:
        """The LoRA file of a new low (`best.keeps_lows`)."""
        step = self.training.step
        wanted = keeps_lows(self.plan.training, self.plan.validation)
        if not wanted or not self.processes.from_main(lambda: self.folder.lacks_best(step)):
            return
        tensors = self._file()
        if self.session.main:
            with self.timings.of("saving"):
                path = self._write(tensors, step)
            self.host.saved(step, path)

    def _file(self) -> dict[str, Tensor]:
        """The LoRA file's tensors in the layout asked for, rounded once. float16 is rounded before, balanced by factors.

        None for the file of a full fine-tune, which is written tensor by tensor.
        """
        if self.session.backend.model_file is not None:
            return {}
        layout, dtype = self.session.backend.layout, self.session.lora_dtype
        exact = dtype if layout is None or dtype == torch.float16 else torch.float32
        tensors = to_file(self.training.adapter, self.session.denoiser.file_key, exact, self._averaged)
        return tensors if layout is None else layout.write(tensors, dtype)

    def _write(
        self, tensors: Mapping[str, Tensor], step: int | None, *, only_missing: bool = False, moved: str = ""
    ) -> Path:
        """The LoRA file of a step, or of the end under the run's plain name, in all its places or where it is missing."""
        if (model := self.session.backend.model_file) is not None:
            facts = {"ss_steps": str(self.training.step), **({"loom.moved": moved} if moved else {})}
            write = partial(model.write, self._saved, facts)
            return self.folder.save_file(write, step, self.session.publish_folder, only_missing=only_missing)
        layout = self.session.backend.layout
        metadata = describe(self.plan.network, step=self.training.step, **self.session.metadata)
        if moved:
            metadata["loom.moved"] = moved
        if layout is not None:
            metadata = in_layout(metadata, layout.format, tensors)
        return self.folder.save_lora(tensors, metadata, step, self.session.publish_folder, only_missing=only_missing)

    @property
    def _averaged(self) -> dict[str, Tensor] | None:
        """What the LoRA file holds in place of the trained weights: their EMA, or the average of a schedule-free optimizer."""
        return self.training.average.values if self.training.average else self.training.stand_in

    @property
    def _saved(self) -> Mapping[str, Tensor]:
        """What files hold, by the names of the parameters."""
        return self._averaged or self.training.adapter.parameters()

    def _finish(self, state: str) -> Outcome:
        """The last LoRA file under its plain name, checked against what a host will compute from it."""
        moved = checked_movement(self.session, self._saved, state)
        tensors = self._file()
        dtype, backend, error = self.session.lora_dtype, self.session.backend, 0.0
        if backend.model_file is None:
            error = checked_error(backend, self.training.adapter, tensors, self._averaged, dtype)
        path = self._write(tensors, None, moved=moved)
        if self.session.main:
            self._prune()  # the last measurement may have found a new low
        self.processes.wait()
        modules = len(self.session.modules)
        text = f"{modules} modules saved, 0 keys unmatched; largest relative error of the file's effect: {error:.1e}"
        self.host.log(text if backend.model_file is None else backend.model_file.verify(self._saved, path))
        self.host.log(moved)
        self.host.saved(self.training.step, path)
        if best := self.processes.from_main(self.folder.recommended):
            self.host.log(
                f"by the validation loss: {best['lora'] or 'none leads'}. {best['reason']}. "
                "Run `lora-loom sweep` and `lora-loom score` for a confidence interval"
            )
            if self.plan.training.keep_best and self.session.main:
                self.host.log(take_best(self.folder, best, self.session.publish_folder))
        times = self.processes.from_main(lambda: growth(self.folder.read_metrics()))
        self.folder.update(loss_growth=round(times, 3))
        if times:
            self.host.log(growth_text(times))
        return Outcome(state=state, step=self.training.step, lora=path, max_relative_error=error, best=best)

    def _watched(self) -> str:
        """What the first steps have shown; it is kept in run.json."""
        if not self.watch.moves:
            self.watch.close()
        self.folder.update(first_steps=self.watch.record())
        return self.watch.text()
