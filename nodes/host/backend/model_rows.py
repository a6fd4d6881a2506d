"""Which row of the table of known models a MODEL is for, and what the row changes in the settings of its network."""

import re
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from ....trainer.diffusion.denoiser import Targets
from ....trainer.diffusion.timesteps import ResolutionShift
from ....trainer.families.common.source import names_of_file
from ....trainer.known_models.row import V_PREDICTION, Told, tell, warning_of
from ....trainer.known_models.rows import ROWS
from ....trainer.lora.roles import block_paths
from ....trainer.runs.run_folder import RunFolder
from ....trainer.types import Record
from ..comfy_types import ModelPatcher
from .families import LoadedFamily, takes_guidance


def told_of(patcher: ModelPatcher) -> Told | None:
    """The row that a MODEL's weights, its file name and its metadata tell; None for a model without one."""
    config = getattr(getattr(patcher.model, "model_config", None), "unet_config", {})
    return tell(ROWS, type(patcher.model).__name__, config, names_of(patcher))


def names_of(patcher: ModelPatcher) -> list[str]:
    """What the MODEL's file is called, by its name and its metadata; [] where ComfyUI does not keep the path."""
    factory = getattr(patcher, "cached_patcher_init", None)
    path = factory[1][0] if factory and factory[1] else None
    return names_of_file(Path(path)) if isinstance(path, str) else []


def usual_cfg(told: Told | None, model_class: str) -> float:
    """Usual classifier-free guidance scale of a model: of its row, 1 for one whose guidance is inside, else 4."""
    if told and told.row.cfg:
        return told.row.cfg.value
    is_distilled = takes_guidance(model_class) or bool(told and told.row.distilled != "no")
    return 1.0 if is_distilled else 4.0


def with_row(settings: LoadedFamily, told: Told | None, network: nn.Module) -> LoadedFamily:
    """The settings of a network with what its row says besides: shift, guidance, and modules that no preset trains."""
    if told is None:
        return settings
    row = told.row
    settings = replace(settings, told=told)
    if row.shift:
        settings = replace(settings, training_shift=row.shift.value)
    if row.guidance:
        settings = replace(settings, conditions={**settings.conditions, "guidance": row.guidance.value})
    if row.leave_out:
        left_out = re.compile(row.leave_out.value.replace("{last}", _last_block(network)))
        targets = {name: _without(target, left_out) for name, target in settings.targets.items()}
        settings = replace(settings, targets=targets)
    return settings


def _without(targets: Targets, left_out: re.Pattern[str]) -> Targets:
    """Presets of a loaded network are lists of paths."""
    return replace(targets, paths=frozenset(path for path in targets.paths or () if not left_out.search(path)))


def _last_block(network: nn.Module) -> str:
    """The number of the last block; "" in a network whose blocks have none."""
    paths = block_paths(network)
    return paths[-1].rpartition(".")[2] if paths else ""


def warnings(
    told: Told | None, patcher: ModelPatcher, predicts: str, *, adapter: bool = False, guided: bool = False
) -> list[str]:
    """What must be said before this MODEL is trained. `adapter`: with a base LoRA for training only; `guided`: with a guided loss."""
    names, name = names_of(patcher), type(patcher.model).__name__
    found = [warning_of(told, names, name, adapter=adapter, guided=guided)]
    if predicts == "epsilon" and any(V_PREDICTION.search(name) for name in names):
        found.append(
            f"{names[0]} is named after v-prediction, and this MODEL predicts epsilon: put ModelSamplingDiscrete (v_prediction) between the loader and LoomTrain"
        )
    return [warning for warning in found if warning]


def record_of(settings: LoadedFamily) -> Record:
    """What run.json keeps of the row, so that a run that goes on is trained as it was begun."""
    told, shift = settings.told, settings.training_shift
    return {
        "name": told.row.name if told else "",
        "told_by": told.by if told else "",
        "distilled": told.row.distilled if told else "no",
        "shift": asdict(shift) if isinstance(shift, ResolutionShift) else shift,
        "conditions": dict(settings.conditions),
    }


def as_begun(folder: RunFolder, settings: LoadedFamily, before: LoadedFamily) -> LoadedFamily:
    """The settings with the shift and the guidance that a run was begun with. `before` are those without a row, which runs of
    earlier versions, whose run.json does not name them, were begun with."""
    if not folder.exists() or folder.has_kept_nothing():
        return settings
    record = folder.read().get("base_model")
    if record is None:
        return replace(settings, training_shift=before.training_shift, conditions=before.conditions)
    shift = record["shift"]
    law = ResolutionShift(**shift) if isinstance(shift, dict) else shift
    return replace(settings, training_shift=law, conditions=record["conditions"])
