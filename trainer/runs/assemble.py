"""The one way to a session: a plan, a network that a front end has loaded and the data it has cached, put together; and to its
adapter and optimizer, with a learning rate that is looked for where that is asked for."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from ..config.run import OptimizerConfig
from ..data.sample_scores import SampleScores
from ..distributed.processes import ALONE, Processes
from ..errors import ConfigError, StoppedError
from ..full.model_file import describe_model
from ..full.network import trained_part
from ..lora.adapter import Adapter
from ..lora.state_dict import size_said, to_training
from ..storage.fingerprint import tensors_digest
from ..training.find_rate import Trial, find_rate, make_search
from ..training.held_out import make_held_out
from ..training.loop import Average, LoopSettings, Training
from ..training.loss_settings import loss_settings, noise_levels
from ..training.optim import optimizer_of
from ..training.rate import auto_rate
from ..training.rate_trials import Trials, passes, probe
from ..training.schedule import lr_factor
from ..types import Record
from ..weights.devices import use_device
from ..weights.streaming import device_of, find_blocks, stream_of
from .adapting.compiling import compile_blocks
from .adapting.rounded_products import measure_products
from .checkpoint import load_checkpoint, newest_intact
from .plan import RunPlan
from .run_folder import RunFolder
from .session import Backend, Host, RunData, SampleRenderer, Session
from .settled import go_back


def assemble(
    plan: RunPlan,
    backend: Backend,
    data: RunData,
    folder: RunFolder,
    modules: Sequence[str],
    *,
    samples: SampleRenderer | None = None,
    processes: Processes = ALONE,
) -> Session:
    """A complete session. `modules` are the paths of the network's modules that get an adapter."""
    predicts = backend.denoiser.objective
    levels = noise_levels(plan.objective, predicts, backend.shift)
    measured = (plan.objective, plan.training, plan.validation)
    metadata = _metadata(plan, backend, data)
    if backend.model_file is not None:
        backend = replace(backend, model_file=replace(backend.model_file, facts=describe_model(**metadata)))
    return Session(
        plan=plan,
        folder=folder,
        backend=backend,
        modules=list(modules),
        batches=data.training,
        held_out=make_held_out(folder.ruler(), data.held_out, measured, predicts, backend.shift),
        loss=loss_settings(plan.objective, levels),
        metadata=metadata,
        samples=samples,
        scores=_scores(plan, data) if samples is not None and processes.rank == 0 else SampleScores(),
        processes=processes,
    )


def _scores(plan: RunPlan, data: RunData) -> SampleScores:
    return SampleScores(plan.validation.clip_score, data.encoder, data.files)


def set_up(session: Session, host: Host) -> tuple[Session, Training]:
    """Adapter and optimizer, fresh or as the last checkpoint holds them; the session, with a number for its learning rate."""
    plan, backend = session.plan, session.backend
    use_device(device_of(backend.denoiser.module))
    usual = auto_rate(backend.denoiser.module, plan.network, plan.optimizer).value
    seed, dtype = plan.training.seed, backend.compute_dtype
    blocks = list(find_blocks(backend.denoiser.module)) if plan.memory.compile else []
    adapter = trained_part(backend.denoiser.module, session.modules, plan.network, seed=seed, compute_dtype=dtype)
    if backend.init:
        adapter.load(to_training(adapter, backend.denoiser.file_key, backend.init))
    parameters = adapter.parameters()
    if plan.optimizer.learning_rate == "find":
        session = with_found_rate(session, adapter, usual, host)
        plan = session.plan
    training = fresh_training(session, adapter, plan.optimizer)
    if plan.training.ema_decay:
        training.average = Average(parameters, plan.training.ema_decay)
    count = sum(parameter.numel() for parameter in parameters.values())
    kind = f"{plan.network.kind} on {len(session.modules)} modules, {count:,} trainable parameters"
    size = f"; its files are whole models, {backend.model_file.bytes / 1e9:.1f} GB each" if backend.model_file else ""
    host.log(f"{kind}{size or size_said(adapter, session.lora_dtype)}")
    if stream := stream_of(backend.denoiser.module):
        host.log(stream.text())
    session.processes.from_main(lambda: newest_intact(session.folder.checkpoints, host.log) is not None)
    if not plan.optimizer.entry.finds_rate and (
        said := session.processes.from_main(partial(go_back, session.folder, plan))
    ):
        host.log(said)
    if checkpoint := session.folder.last_checkpoint():  # of the intact ones
        load_checkpoint(checkpoint, training)
        host.log(f"continuing from step {training.step}")
    session.folder.cut_metrics(training.step)
    if session.processes.count > 1:
        session.processes.require_same("adapter", f"{training.step} {tensors_digest(parameters)}")
    measure_products(session, training, host)
    if plan.memory.compile:
        compile_blocks(session, training, blocks, host)
    return session, training


def fresh_training(session: Session, adapter: Adapter, optimizer: OptimizerConfig) -> Training:
    """The adapter as it is, with an optimizer that has no state yet."""
    parameters, backend = adapter.parameters(), session.backend
    plan = session.plan
    made = optimizer_of(parameters, optimizer, plan.network, backend.rate_scales, plan.training.seed)
    training = Training(adapter=adapter, optimizer=made)
    if backend.compute_dtype == torch.float16:
        training.scaler = torch.amp.GradScaler(next(iter(parameters.values())).device.type)
    return training


def with_found_rate(session: Session, adapter: Adapter, usual: float, host: Host) -> Session:
    """The session with the rate that its run has found, or finds now round the usual one; run.json keeps every trial.

    Raises StoppedError if the host stops the search, which goes on the next time with what was measured.
    """
    folder, plan = session.folder, session.plan
    kept = session.processes.from_main(lambda: dict(folder.read()))
    rate = kept.get("found_rate") or _found(session, adapter, usual, host, kept.get("rate_trials", []))
    if session.main:
        folder.update(found_rate=rate)
    host.log(f"learning rate: {rate:g} (found by trying)")
    metadata = {**session.metadata, "training": {**session.metadata["training"], "learning_rate": rate}}
    optimizer = replace(plan.optimizer, learning_rate=rate)
    return replace(session, plan=replace(plan, optimizer=optimizer), metadata=metadata)


def _found(session: Session, adapter: Adapter, usual: float, host: Host, known: list[Record]) -> float:
    """Search round the usual rate, going on from the trials that are known."""
    plan, steps = session.plan, session.plan.training.steps
    measured = probe(session.denoiser, session.held_out, session.batches)
    per_step = plan.training.batch_size * plan.training.gradient_accumulation_steps * session.processes.count
    search = make_search(usual, steps, passes(session.denoiser, measured), per_step)
    if not measured.batches:
        raise ConfigError(
            "optimizer.learning_rate = 'find' needs images to measure: set images aside, or give a number"
        )
    host.log(search.text(steps, per_step))
    done, taken = [Trial(**one) for one in known], 0

    def keep(trial: Trial) -> None:
        done.append(trial)
        if session.main:
            session.folder.update(rate_trials=[asdict(one) for one in done])
        host.log(f"rate {trial.rate:g}: loss {trial.loss:.5f} after {trial.steps} steps")

    def on_step() -> None:
        nonlocal taken
        taken += 1
        host.stage("looking for a learning rate", min(taken, search.trained), search.trained)
        host.between_steps()
        if session.processes.any(host.should_stop()):
            raise StoppedError(
                "stopped while looking for a learning rate: what was measured is kept, run it again to go on"
            )

    settings = LoopSettings(
        loss=session.loss,
        seed=plan.training.seed,
        accumulation=plan.training.gradient_accumulation_steps,
        clip_norm=plan.optimizer.max_grad_norm,
    )
    trials = Trials(
        denoiser=session.denoiser,
        adapter=adapter,
        batches=session.batches,
        settings=settings,
        probe=measured,
        processes=session.processes,
        fresh=lambda rate: fresh_training(session, adapter, replace(plan.optimizer, learning_rate=rate)),
        factor=lambda step: lr_factor(step, steps, plan.schedule),
        on_step=on_step,
    )
    try:
        return find_rate(search, done.copy(), trials.train, keep)
    finally:
        trials.restore()


def _below(plan: RunPlan) -> dict[str, str]:
    """The base LoRAs, for people and programs that have the file alone: those of use "always" have to be loaded with it."""
    return {"base_loras": json.dumps([one.record() for one in plan.base_loras])} if plan.base_loras else {}


def _metadata(plan: RunPlan, backend: Backend, data: RunData) -> dict[str, Any]:
    """Arguments of `lora.metadata.describe` that are known before training."""
    return {
        "title": plan.name,
        "architecture": backend.architecture,
        "prediction": backend.denoiser.objective.name,
        "resolution": data.resolution,
        "trigger": plan.trigger,
        "facts": {"dataset": plan.facts["data"], "base": plan.facts["model"], **_below(plan)},
        "training": {
            "base_model_version": backend.architecture,
            "learning_rate": plan.optimizer.learning_rate,
            "optimizer": plan.optimizer.name,
            "lr_scheduler": plan.schedule.kind,
            "num_train_images": data.images,
            "max_train_steps": plan.training.steps,
            "batch_size_per_device": plan.training.batch_size,
            "gradient_accumulation_steps": plan.training.gradient_accumulation_steps,
            "seed": plan.training.seed,
        },
    }
