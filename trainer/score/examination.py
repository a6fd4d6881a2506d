"""Examining a run of the command line after it was trained: the data doctor with one of its LoRA files."""

from functools import partial

from ..config.network import WHOLE
from ..config.run import TrainConfig
from ..doctor.report import cost_text, due_at, examine_run
from ..errors import RunError, StoppedError
from ..lora.adapter import inject
from ..lora.state_dict import to_training
from ..lora_tools.layouts import Formats
from ..runs.headless import build_cache, make_session, prepare, run_plan
from ..runs.run_folder import RunFolder, SavedLora
from ..runs.session import Host
from ..storage.tensor_file import read_lora
from ..types import Record


def examine_later(config: TrainConfig, host: Host) -> Record:
    """Examine the training images of a run with the LoRA file that is nearest to its step for it, and write doctor.json.

    Raises RunError for a run without a LoRA file, or one with trained text encoders, and LoomError as a run does.
    """
    if config.text.is_trained:
        raise RunError(
            "the data doctor reads a run with trained text encoders only while it trains: validation.doctor = true"
        )
    if config.network.kind == WHOLE:
        raise RunError("the data doctor compares with the base model, whose weights a full fine-tune has changed")
    prepared = prepare(config, host)
    folder = prepared.folder
    build_cache(prepared, host)
    prepared.cache.reload()
    session = make_session(prepared, run_plan(prepared))
    due = due_at(session.batches, session.plan.training)
    file = _nearest(folder, due or 0)
    network, plan = session.denoiser, session.plan
    adapter = inject(network.module, session.modules, plan.network, seed=plan.training.seed, compute_dtype=session.backend.compute_dtype)  # fmt: skip
    formats = Formats(family=prepared.base.family, denoiser=network)
    adapter.load(to_training(adapter, network.file_key, formats.native(read_lora(str(file.path)))))
    host.log(cost_text(session.batches))
    progress = partial(host.stage, "data doctor")

    def stop() -> bool:
        if host.should_stop():
            raise StoppedError("stopped while examining: nothing is written, run it again")
        return False

    return examine_run(folder.path, file.step, network, adapter, session.batches, session.held_out.levels, progress, stop)  # fmt: skip


def _nearest(folder: RunFolder, step: int) -> SavedLora:
    """The LoRA file of the checkpoint that is nearest to a step, else the last one."""
    found = folder.saved_loras()
    if found:
        return min(found, key=lambda one: abs(one.step - step))
    if folder.exists() and folder.lora_file(None).is_file():
        return SavedLora(step=int(folder.read().get("step", 0)), path=folder.lora_file(None))
    raise RunError(f"run {folder.name} has no LoRA file in {folder.path / 'loras'}: train it first")
