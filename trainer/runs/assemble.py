"""The one way to a session: a plan, a network that a front end has loaded and the data it has cached, put together."""

import json
from collections.abc import Sequence
from typing import Any

from ..distributed.processes import ALONE, Processes
from ..training.held_out import make_held_out
from ..training.loss_settings import loss_settings, noise_levels
from .plan import RunPlan
from .run_folder import RunFolder
from .session import Backend, RunData, SampleRenderer, Session


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
    return Session(
        plan=plan,
        folder=folder,
        backend=backend,
        modules=list(modules),
        batches=data.training,
        held_out=make_held_out(folder.ruler(), data.held_out, measured, predicts, backend.shift),
        loss=loss_settings(plan.objective, levels),
        metadata=_metadata(plan, backend, data),
        samples=samples,
        processes=processes,
    )


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
            "learning_rate": plan.optimizer.rate,
            "optimizer": plan.optimizer.name,
            "lr_scheduler": plan.schedule.kind,
            "num_train_images": data.images,
            "max_train_steps": plan.training.steps,
            "batch_size_per_device": plan.training.batch_size,
            "gradient_accumulation_steps": plan.training.gradient_accumulation_steps,
            "seed": plan.training.seed,
        },
    }
