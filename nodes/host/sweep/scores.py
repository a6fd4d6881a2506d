"""Scores in ComfyUI: losses come from the connected model, or from what the run recorded. Node thread only."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ....trainer.config.aliases import no_note
from ....trainer.config.run import ObjectiveConfig, TrainingConfig, ValidationConfig
from ....trainer.config.toml import parse
from ....trainer.data.batches import Singles
from ....trainer.data.order import make_plan
from ....trainer.data.sets.dataset import Dataset
from ....trainer.errors import LoomError
from ....trainer.lora.base_lora import lay_base_loras
from ....trainer.runs.run_folder import RunFolder
from ....trainer.score.bleed import listed
from ....trainer.score.curve import keep_curve
from ....trainer.score.image_statistics import StatisticsEncoder
from ....trainer.score.run import gather, measured_losses, norms, recorded_losses, write_score
from ....trainer.score.score import Losses, score
from ....trainer.storage.tensor_file import read_lora
from ....trainer.sweep.run import Sheet, load_sheet
from ....trainer.training.held_out import make_held_out, ruler_of
from ....trainer.types import Record
from ....trainer.weights.frozen import compute_in
from ...sockets.values import CacheValue, SheetValue
from ..backend.base_loras import read_base_loras, recorded_below, with_base
from ..backend.denoiser import bring_to_device, load_denoiser
from ..backend.patches import without_patches
from ..comfy_types import ClipVision, ModelPatcher
from ..encoding.clip_vision import HostVision
from ..encoding.datasets import read_listing
from ..encoding.images import files_to_image
from ..paths import display_path
from ..progress import Bar
from ..runs.batches import open_batches
from ..runs.memory.weights import place_weights
from ..runs.session import sampled_identity, training_shift
from .sampling import changes_text


class NodeProgress:
    """The progress of scoring on the node's progress bar, where Cancel takes effect."""

    def __init__(self) -> None:
        self._bar = Bar()

    def stage(self, name: str, done: int, total: int) -> None:
        """Show `done` of `total`."""
        self._bar.update(done, total)


def scored_sheet(
    sheet: SheetValue, cache: CacheValue, model: ModelPatcher | None, clip_vision: ClipVision | None, trigger: str
) -> tuple[SheetValue, str, Tensor, dict[str, str]]:
    """Returns (sheet with its scores, table, plot, the plot's file for the frontend). Raises LoomError for a sheet or cache that is gone."""
    loaded = load_sheet(Path(sheet.folder), sheet.name)
    dataset = Dataset(examples=tuple(read_listing(cache)))
    run = RunFolder(Path(sheet.folder).parent)
    progress = NodeProgress()
    notes: list[str] = []
    losses = _losses(loaded, dataset, cache, run, model, progress, notes)
    trained = {one.path: one.captions[0] for one in dataset.training if one.role == "train" and one.path.is_file()}
    encoder = HostVision(clip_vision) if clip_vision is not None else StatisticsEncoder()
    evidence = gather(
        loaded.cells,
        encoder,
        list(trained),
        losses,
        listed(trigger) or listed(cache.trigger),
        norms(loaded.loras),
        notes,
        progress,
        list(trained.values()),
    )
    name = f"{sheet.name}-scored"
    made = score(loaded.cells, evidence)
    keep_curve(run, loaded.cells, made, encoder)
    done = write_score(loaded, made, sheet.name, sheet.title, name)
    value = SheetValue(folder=sheet.folder, name=name, title=sheet.title)
    return value, done.text, files_to_image([done.plot]), display_path(done.plot)


def _losses(
    sheet: Sheet,
    dataset: Dataset,
    cache: CacheValue,
    run: RunFolder,
    model: ModelPatcher | None,
    progress: NodeProgress,
    notes: list[str],
) -> Losses | None:
    if not dataset.held_out:
        notes.append(
            "validation loss not measured: give LoomCache a validation_split, or add a LoomDataset with role validation"
        )
        return None
    record = run.read() if run.exists() else {}
    if model is not None and any(changes_text(read_lora(path)) for path in sheet.loras.values()):
        notes.append(
            "validation loss not measured: these LoRAs change the text encoder, which only their run can measure; unlink model to take what the run recorded"
        )
        return None
    if model is not None:
        return _measured(sheet, dataset, cache, record, model, progress, notes)
    if record.get("fixed", {}).get("facts", {}).get("data") != cache.digest:
        notes.append(
            "validation loss unknown: these checkpoints are not from a run on this cache; connect model to measure it"
        )
        return None
    found = recorded_losses(run, sheet.cells, notes)
    if found is None:
        notes.append(
            "validation loss unknown: the run recorded none for these checkpoints; connect model to measure it"
        )
    return found


@torch.inference_mode(False)
def _measured(
    sheet: Sheet,
    dataset: Dataset,
    cache: CacheValue,
    record: Record,
    patcher: ModelPatcher,
    progress: NodeProgress,
    notes: list[str],
) -> Losses:
    """Validation losses on the weights that ComfyUI holds, with each LoRA applied to a shadow of the network in turn."""
    files, patches, _ = recorded_below(record)
    with_base(patcher, files, patches)  # refuses another MODEL than the run's
    below = read_base_loras(patcher if patches or not files else without_patches(patcher), files)
    bring_to_device(patcher)
    denoiser = load_denoiser(patcher)
    place_weights(denoiser, patcher, notes.append)
    compute_in(denoiser.module, denoiser.compute_dtype)
    lay_base_loras(denoiser.module, below)  # those for training too: the loss is measured as while training
    objective = _recorded(record, "objective", ObjectiveConfig)
    examples = dataset.held_out
    batches = open_batches(
        patcher,
        denoiser,
        cache,
        objective,
        sampled_identity(without_patches(patcher)),
        examples,
        make_plan(examples, 1, 0),
        lambda done, total: progress.stage("conditions", done, total),
    )(examples)
    training, validation = (
        _recorded(record, "training", TrainingConfig),
        _recorded(record, "validation", ValidationConfig),
    )
    config = (objective, training, validation)
    shift = training_shift(denoiser)
    held_out = make_held_out(ruler_of(record), Singles(batches), config, denoiser.objective, shift)
    return measured_losses(sheet, denoiser, held_out, progress, notes, dict)


T = TypeVar("T", ObjectiveConfig, TrainingConfig, ValidationConfig)


def _recorded(record: Record, table: str, kind: type[T]) -> T:
    """A table of the run's configuration, so that losses are measured as in training; the defaults for files without a run."""
    try:
        return parse(record["config"][table], kind, no_note)
    except (LoomError, KeyError):
        return kind()
