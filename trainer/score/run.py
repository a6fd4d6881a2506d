"""From a sweep on disk to its scores: gathers losses, image features and norms, then writes the files next to the sheet."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..config.run import TrainConfig
from ..data.batches import Singles
from ..data.clip import ImageEncoder
from ..data.sets.dataset_file import gather_sets
from ..diffusion.denoiser import Denoiser
from ..errors import LoomError, ModelFileError, StoppedError
from ..lora.base_lora import lay_base_loras
from ..lora.host_formula import group_by_module
from ..lora.patch import patched
from ..lora_tools.layouts import Formats
from ..runs.headless import Prepared, build_cache, dataset_batches, prepare, run_folder
from ..runs.record import recorded_tables, run_config, training_captions
from ..runs.run_folder import RunFolder
from ..runs.session import Host
from ..storage.atomic import write_bytes, write_json
from ..storage.fingerprint import tensors_digest
from ..storage.tensor_file import read_lora
from ..sweep.cells import sheet_to_dict
from ..sweep.run import Sheet, find_sheet, load_sheet
from ..training.held_out import HeldOut, held_out_losses, losses_at_even_levels, make_held_out, mean_loss
from ..types import Cell, Record
from ..weights.devices import compute_dtype
from .bleed import listed
from .candidates import RowKey, candidates
from .curve import keep_curve, own_candidates
from .image_statistics import StatisticsEncoder, image_features
from .report import plot, to_csv, to_text
from .score import Evidence, Losses, Score, score

RECORDED = "recorded during training, with the weights in training precision (the files hold rounded copies)"
MEASURED = "measured now, with each file applied to the base model as ComfyUI does it"


class Progress(Protocol):
    """Receives the progress of scoring."""

    def stage(self, name: str, done: int, total: int) -> None:
        """`done` of `total` parts of what `name` describes are finished."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A scored sweep and the files that were written."""

    sheet: Sheet
    score: Score
    text: str
    files: tuple[Path, ...]
    """Table, CSV, JSON and plot."""
    plot: Path


def score_sheet(
    path: Path,
    host: Host,
    *,
    config: TrainConfig | None = None,
    triggers: Sequence[str] = (),
    encoder: str = "",
) -> Scored:
    """Score a finished sweep: a sheet, or the newest one in a folder. Without a configuration, that of the run whose folder it is.

    Raises RunError without a sheet, ModelFileError for an `encoder` that is not a CLIP folder. Anything else that is missing
    leaves measures out, and the notes name it.
    """
    folder, name = find_sheet(path)
    sheet = load_sheet(folder, name)
    image_encoder: ImageEncoder = StatisticsEncoder()
    if encoder:
        from ..data.clip import ClipFiles

        image_encoder = ClipFiles(Path(encoder).expanduser())
    run = run_folder(config) if config is not None else RunFolder(folder.resolve().parent)
    source = _of_config(config, sheet, host) if config is not None else _of_run(run, sheet, host)
    losses, notes = source.losses, list(source.notes)
    if losses is None or len(losses.values) < 2:
        losses = recorded_losses(run, sheet.cells, notes) or losses
    words = list(triggers) or list(source.triggers)
    evidence = gather(
        sheet.cells, image_encoder, source.images, losses, words, norms(sheet.loras), notes, host, source.captions
    )
    made = score(sheet.cells, evidence)
    keep_curve(run, sheet.cells, made, image_encoder)
    return write_score(sheet, made, name, folder.resolve().parent.name)


@dataclass(frozen=True, kw_only=True)
class RunSource:
    """What the run behind a sheet adds to its score."""

    losses: Losses | None = None
    images: Sequence[Path] = ()
    """Training images."""
    captions: Sequence[str] = ()
    """Their first captions."""
    triggers: Sequence[str] = ()
    notes: Sequence[str] = ()


def _of_run(run: RunFolder, sheet: Sheet, host: Host) -> RunSource:
    """Reads the run's record in its folder. A run of ComfyUI has its images in the cache, and losses only as it recorded them."""
    try:
        tables = recorded_tables(run)
        config = None if "cache" in tables else run_config(run)
        captions = training_captions(run)
    except LoomError as error:
        note = f"{run.name}: {error}. Validation losses as recorded, no training images (give --config RUN.toml)"
        return RunSource(notes=[note])
    if config is not None:
        return _of_config(config, sheet, host)
    triggers = listed(str(tables["cache"].get("trigger", "")))
    note = f"{run.name} was trained in ComfyUI: validation losses as recorded while it trained"
    return RunSource(images=list(captions), captions=list(captions.values()), triggers=triggers, notes=[note])


def _of_config(config: TrainConfig, sheet: Sheet, host: Host) -> RunSource:
    sets = gather_sets(config.dataset, config.dataset_files).sets
    notes: list[str] = []
    losses, captions = _measure(sheet, config, host, notes)
    words = [one.trigger for one in sets if one.trigger]
    images, texts = list(captions), list(captions.values())
    return RunSource(losses=losses, images=images, captions=texts, triggers=words, notes=notes)


def _measure(sheet: Sheet, config: TrainConfig, host: Host, notes: list[str]) -> tuple[Losses | None, dict[Path, str]]:
    """Validation losses of the base and of every LoRA file of the sweep, and the training images with their captions."""
    prepared = prepare(config, host)
    training = {one.path: one.captions[0] for one in prepared.dataset.training if one.role == "train"}
    if not prepared.dataset.held_out:
        notes.append(
            "validation loss not measured: the run has no held-out images (data.validation_split, or role = 'validation')"
        )
        return None, training
    build_cache(prepared, host)
    base = prepared.base
    denoiser = base.load_denoiser(config.model, config.training.precision)
    lay_base_loras(
        denoiser.module, prepared.base_loras
    )  # those for training too: the loss is measured as while training
    held_out = _held_out_of(prepared)
    host.log(f"validation loss in {str(compute_dtype(config.training.precision, base.device)).removeprefix('torch.')}")
    native = Formats(family=base.family, denoiser=denoiser).native
    return measured_losses(sheet, denoiser, held_out, host, notes, native, host.should_stop), training


def _held_out_of(prepared: Prepared) -> HeldOut:
    """The images set aside, under the ruler of the run. Needs a filled cache to be read."""
    config, settings = prepared.config, prepared.base.settings
    return make_held_out(
        prepared.folder.ruler(),
        Singles(dataset_batches(prepared, prepared.dataset.held_out)),
        (config.objective, config.training, config.validation),
        settings.objective,
        settings.training_shift,
    )


def measured_losses(
    sheet: Sheet,
    denoiser: Denoiser,
    held_out: HeldOut,
    progress: Progress,
    notes: list[str],
    native: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    should_stop: Callable[[], bool] = lambda: False,
) -> Losses:
    """Validation losses of every candidate, each applied to the base in turn. A candidate that cannot be measured gets a note.

    `native` converts the tensors of a file to the key names of the base model.
    """
    found = candidates(sheet.cells)
    values: dict[RowKey, list[list[float]]] = {}
    even: dict[RowKey, float] = {}
    for done, candidate in enumerate(found):
        digest, strength = candidate.key
        try:
            tensors = native(_intact(sheet.loras.get(digest), digest)) if digest else {}
            with patched(denoiser, tensors, strength):
                losses = held_out_losses(denoiser, held_out, should_stop=should_stop)
                at_even = losses_at_even_levels(denoiser, held_out, losses, should_stop)
        except ModelFileError as error:
            notes.append(f"validation loss of {candidate.label} not measured: {error}")
            continue
        if any(len(rows) < len(held_out.batches) for rows in (losses, at_even) if rows is not None):
            raise StoppedError("the scoring was stopped; run it again")
        values[candidate.key] = losses
        if at_even is not None:
            even[candidate.key] = mean_loss(at_even)
        progress.stage("validation loss", done + 1, len(found))
    return Losses(values=values, even=even, source=MEASURED)


def _intact(path: Path | None, digest: str) -> dict[str, Tensor]:
    """The tensors of a swept LoRA. Raises ModelFileError if its file is gone or has changed since the sweep."""
    tensors = read_lora(path) if path is not None and path.is_file() else {}
    if tensors_digest(tensors) != digest:
        raise ModelFileError("its file is gone or has changed since the sweep")
    return tensors


def recorded_losses(run: RunFolder, cells: Sequence[Cell], notes: list[str]) -> Losses | None:
    """Losses from the run's metrics.jsonl, for its own checkpoints at strength 1 and for the base; None for fewer than two."""
    lines = {line["step"]: line for line in run.read_metrics() if "held_out_parts" in line}
    values: dict[RowKey, list[list[float]]] = {}
    even: dict[RowKey, float] = {}
    for candidate in own_candidates(run, cells):
        if candidate.step in lines:
            line = lines[candidate.step]
            values[candidate.key] = line["held_out_parts"]
            if (loss := line.get("held_out_even_ema", line.get("held_out_even"))) is not None:
                even[candidate.key] = loss
    shapes = {(len(rows), len(rows[0])) for rows in values.values() if rows}
    if len(values) < 2:
        return None
    if len(shapes) > 1:
        notes.append(
            "recorded validation losses not used: the run changed its held-out images or noise levels in between"
        )
        return None
    return Losses(values=values, even=even, source=RECORDED)


def norms(loras: Mapping[str, Path]) -> dict[str, float]:
    """Returns {digest: Frobenius norm of all weight changes at strength 1}, without files that are gone or cannot be measured."""
    measured = {digest: adapter_norm(path) for digest, path in loras.items() if path.is_file()}
    return {digest: norm for digest, norm in measured.items() if norm is not None}


def adapter_norm(path: Path) -> float | None:
    """Returns sqrt(sum over modules of |change|^2), None for OFT, GLoRA and the like, whose change depends on the base's weights.

    For DoRA it is that of the low-rank part alone, for the same reason. Changes of biases are left out.
    """
    from ..lora.host_formula import changes_weight, low_rank_change, needs_base, undecomposed

    modules, _ = group_by_module(read_lora(path))
    of_weights = [parts for parts in modules.values() if changes_weight(parts)]
    if any(needs_base(undecomposed(parts)) for parts in of_weights):
        return None
    return sum(float(low_rank_change(parts).double().square().sum()) for parts in of_weights) ** 0.5


def gather(
    cells: Sequence[Cell],
    encoder: ImageEncoder,
    training: Sequence[Path],
    losses: Losses | None,
    triggers: Sequence[str],
    norms: Mapping[str, float],
    notes: Sequence[str],
    progress: Progress,
    captions: Sequence[str] = (),
) -> Evidence:
    """Compute the features of every cell and every training image, once each. `captions` are those of the training images."""
    statistics, features = {}, {}
    for done, cell in enumerate(cells):
        statistics[cell.id] = image_features(cell.image)
        [features[cell.id]] = encoder.images([cell.image])
        progress.stage("computing image features", done + 1, len(cells))
    prompts = sorted({cell.prompt for cell in cells})
    texts = encoder.texts(prompts)
    return Evidence(
        losses=losses,
        encoder=encoder,
        statistics=statistics,
        features=features,
        training_statistics=[image_features(path) for path in training],
        training_features=encoder.images(training) if training else [],
        training_names=[path.name for path in training],
        training_captions=captions,
        prompt_features=dict(zip(prompts, texts, strict=True)) if texts else {},
        triggers=triggers,
        norms=norms,
        notes=notes,
    )


def write_score(sheet: Sheet, made: Score, name: str, title: str, as_name: str = "") -> Scored:
    """Write the sheet with its scores, so that strips frame the recommended cells, and the table as text, CSV, JSON and plot."""
    cells = tuple(replace(cell, settings={**cell.settings, "scores": made.cells[cell.id]}) for cell in sheet.cells)
    scored = replace(sheet, cells=cells, best=frozenset(made.best))
    text = to_text(made)
    stem = "scores" + name.removeprefix("sheet")
    files = [sheet.folder / f"{stem}{suffix}" for suffix in (".txt", ".csv", ".json", ".png")]
    contents = [text.encode() + b"\n", to_csv(made).encode("utf-8-sig"), _json(made.to_dict()), plot(made, title)]
    for path, content in zip(files, contents, strict=True):
        write_bytes(path, content)
    write_json(sheet.folder / f"{as_name or name}.json", sheet_to_dict(cells, loras=sheet.loras, best=made.best))
    return Scored(sheet=scored, score=made, text=text, files=tuple(files), plot=files[-1])


def _json(data: Record) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()
