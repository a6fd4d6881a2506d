"""Checkpoints, sweeps and grids in ComfyUI: the trainer's sheet, with cells that ComfyUI renders."""

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from ....trainer.config.model import BaseLoraConfig
from ....trainer.config.run import GuidanceConfig, SweepConfig
from ....trainer.config.toml import digest
from ....trainer.errors import ConfigError, RunError
from ....trainer.storage.atomic import write_json
from ....trainer.storage.tensor_file import read_lora
from ....trainer.sweep.cell_workflow import MakeGraph
from ....trainer.sweep.cells import Axes, Rendering, SweptLora, missing, plan_cells, sheet_to_dict, write_image
from ....trainer.sweep.loras import by_number, step_label, swept_lora
from ....trainer.sweep.run import (
    LargeSweepPrompt,
    check_count,
    check_sizes,
    load_sheet,
    make_axes,
    usual_guidance,
    vary,
    write_panels,
    write_strips,
    write_tables,
)
from ....trainer.sweep.strip import AXES
from ....trainer.types import Cell
from ...sockets.names import ALONE, AUTO
from ...sockets.values import CheckpointsValue, GuidanceValue, RunValue, SheetValue
from ..backend.base_loras import check_clip_loras, recorded_below, with_base
from ..backend.lora_check import check_fits_model
from ..backend.model_rows import told_of, usual_cfg
from ..comfy_types import Clip, Graph, ModelPatcher, Vae
from ..encoding.edit_prompts import chosen_reading
from ..encoding.encoders import clip_identity, model_identity, vae_identity
from ..encoding.images import files_to_image
from ..encoding.reference_images import ReferenceInputs, kept_references, reference_batches
from ..paths import find_lora, is_inside, library_path, lora_root, root, run_folder
from ..progress import Bar
from .cell_workflow import cell_graphs
from .sampler_names import sampler_names
from .sampling import ComfyRenderer, open_renderer, render, with_guidance, with_lora

CheckpointPick = Literal["all", "every nth", "last n"]


class SweepInputs(ReferenceInputs, total=False):
    """The inputs of LoomSweep besides its links. A workflow of an earlier version lacks those that came later."""

    prompts: str
    negative: str
    prompt_library: str
    strengths: str
    seeds: str
    width: int
    height: int
    steps: int
    sampler: str
    scheduler: str
    sizes: str
    step_counts: str
    samplers: str
    model_guidance: float
    max_cells: int
    wildcards: bool
    prompt: Graph | None
    """The queued graph, with this node's id in it."""
    node_id: str | None


def collect(
    run: RunValue | None, files: str, pick: CheckpointPick, number: int, *, include_base: bool
) -> CheckpointsValue:
    """The LoRAs of a run or of a list of files. Raises ConfigError or RunError if there is nothing to compare."""
    if run is not None and files.strip():
        raise ConfigError(f"files = {files!r} and a connected run: disconnect the run, or clear files")
    directory, title = root() / "strips", "files"
    steps: tuple[int, ...] = ()
    base_loras: tuple[BaseLoraConfig, ...] = ()
    patches = clip_patches = ""
    if run is not None:
        folder, title = run_folder(run.name), run.name
        base_loras, patches, clip_patches = recorded_below(folder.read())
        directory = folder.path / "strips"
        saved = picked(folder.saved_loras(), pick, number)
        if not saved:
            raise RunError(f"run {run.name} has saved no LoRA yet: wait for its first save_every steps (LoomWait)")
        chosen, steps = [(step_label(one.step), str(one.path)) for one in saved], tuple(one.step for one in saved)
    else:
        chosen = picked(_of_files(files), pick, number)
    return CheckpointsValue(
        files=tuple(chosen),
        steps=steps,
        include_base=include_base,
        directory=str(directory),
        title=title,
        base_loras=base_loras,
        patches=patches,
        clip_patches=clip_patches,
    )


def _of_files(text: str) -> list[tuple[str, str]]:
    """LoRAs as LoraLoader lists them, one per line, or with * and ?."""
    base, found = lora_root(), []
    for line in (line.strip() for line in text.splitlines()):
        if not line:
            continue
        if not glob.has_magic(line):
            found.append(find_lora(line))
            continue
        matches = sorted(
            (path for path in base.glob(line) if path.suffix == ".safetensors" and is_inside(path, base)), key=by_number
        )
        if not matches:
            raise ConfigError(f"files: {line!r} matches nothing in {base}")
        found += matches
    if not found:
        raise ConfigError("connect a run, or name LoRA files in files, one per line")
    common = os.path.commonpath([str(path.parent) for path in found])
    return [(Path(os.path.relpath(path, common)).with_suffix("").as_posix(), str(path)) for path in found]


T = TypeVar("T")


def picked(files: Sequence[T], pick: CheckpointPick, number: int) -> list[T]:
    """All of them, the last `number`, or every one of that number; of these the last is always one."""
    if pick == "last n":
        return list(files[-number:])
    if pick == "every nth":
        return list(files[::-1][::number][::-1])  # counted from the end, so that the last one is among them
    return list(files)


def rendered_sheet(
    model: ModelPatcher,
    vae: Vae,
    clip: Clip,
    checkpoints: CheckpointsValue,
    guidance: GuidanceValue | None,
    inputs: SweepInputs,
) -> tuple[SheetValue, Tensor]:
    """Render the cells that do not exist yet, so that a cancelled sweep continues. Returns the sweep and all its images."""
    sweep = SweepConfig(
        prompts=tuple(line.strip() for line in inputs["prompts"].splitlines() if line.strip()),
        prompt_library=library_path(inputs.get("prompt_library", "")),
        negative_prompt=inputs.get("negative", ""),
        wildcards=inputs.get("wildcards", False),
        seeds=inputs["seeds"],
        strengths=inputs["strengths"],
        guidance=guidance.settings if guidance else usual_guidance((GuidanceConfig(),), _usual_scale(model)),
        base=checkpoints.include_base,
        references=kept_references(reference_batches(inputs)),
    )
    check_clip_loras(clip, checkpoints.clip_patches)
    plain, model = model, with_base(model, checkpoints.base_loras, checkpoints.patches)
    below = checkpoints.base_loras if model is not plain else ()
    axes = make_axes(sweep, _swept(checkpoints), 0)
    most = max((len(one.paths) for one in axes.references), default=0)
    reading = chosen_reading(inputs.get("edit_prompts", AUTO), clip, most)
    renderings = _renderings(model, vae, clip, inputs, reading)
    check_count(axes, renderings)
    folder = Path(checkpoints.directory)
    cells = plan_cells(axes, renderings, folder / "cells")
    todo = missing(cells)
    if todo:
        wanted = {cell.settings["lora"] for cell in todo}
        for lora in axes.loras:
            if lora.digest in wanted:
                check_fits_model(model.model, read_lora(lora.path), lora.path.name)
        asking = LargeSweepPrompt(cells=len(todo), limit=inputs.get("max_cells", 1000), confirm=lambda question: False)
        make_graph = cell_graphs(inputs.get("prompt"), inputs.get("node_id"), model, axes.references, reading, below)
        renderer = open_renderer(vae, clip, reading, axes.references, renderings[0].model_guidance)
        _render_all(todo, model, renderer, axes, asking, make_graph)
    name = "sheet-" + digest([cell.id for cell in cells])[:16]
    loras = {lora.digest: lora.path for lora in axes.loras}
    write_json(folder / f"{name}.json", sheet_to_dict(cells, loras=loras))
    value = SheetValue(folder=str(folder), name=name, title=checkpoints.title)
    return value, files_to_image([cell.image for cell in cells])


def _usual_scale(model: ModelPatcher) -> float:
    return usual_cfg(told_of(model), type(model.model).__name__)


def _swept(checkpoints: CheckpointsValue) -> tuple[SweptLora, ...]:
    """The chosen LoRAs with their labels and digests. Raises ModelFileError for a file that is not a LoRA, damaged or gone."""
    steps = checkpoints.steps or (None,) * len(checkpoints.files)
    loras = (swept_lora(Path(path), label, step) for (label, path), step in zip(checkpoints.files, steps, strict=True))
    return tuple(replace(one, loaded_into="model and clip") if one.has_texts else one for one in loras)


def _renderings(model: ModelPatcher, vae: Vae, clip: Clip, inputs: SweepInputs, reading: str) -> tuple[Rendering, ...]:
    """One rendering for every size, number of steps and sampler. Raises ConfigError for an impossible size or an unknown sampler."""
    sampling = model.get_model_object("model_sampling")
    how = {"sampling": type(sampling).__name__, "sigma_max": float(sampling.sigma_max)}
    seen = [] if reading == ALONE else [reading]
    plain = Rendering(
        size=(inputs["width"], inputs["height"]),
        steps=inputs["steps"],
        sampler=inputs["sampler"],
        scheduler=inputs["scheduler"],
        model=digest([model_identity(model, how), vae_identity(vae), clip_identity(clip), *seen]),
        model_guidance=inputs.get("model_guidance", 3.5),
    )
    made = vary(
        plain,
        sizes=inputs.get("sizes", ""),
        step_counts=inputs.get("step_counts", ""),
        samplers=inputs.get("samplers", ""),
        known=sampler_names(),
    )
    check_sizes(made, int(vae.spacial_compression_encode()), "this VAE")
    return made


def _render_all(
    todo: Sequence[Cell],
    model: ModelPatcher,
    renderer: ComfyRenderer,
    axes: Axes,
    asking: LargeSweepPrompt,
    make_graph: MakeGraph,
) -> None:
    """Render LoRA by LoRA, so that each is patched in once. Prompts are encoded before, so that their encoder is loaded once."""
    renderer.prepare(todo, model)
    files = {lora.digest: lora.path for lora in axes.loras}
    settings = {setting.name: setting for setting in axes.guidance}
    bar, done = Bar(), 0
    for (lora, strength), group in groupby(todo, key=lambda cell: (cell.settings["lora"], cell.strength)):
        patched, clip = with_lora(model, renderer.clip, read_lora(files[lora]), strength) if lora else (model, None)
        shown, cells = renderer.reading_with(clip or renderer.clip), list(group)
        if shown is not renderer:  # it reads the prompts otherwise
            shown.prepare(cells, patched)
        for cell in cells:
            guidance = settings[cell.guidance]
            pixels_CHW = render(with_guidance(patched, guidance), shown, cell, guidance.scale)
            write_image(pixels_CHW, cell, make_graph(cell, files.get(lora), guidance))
            asking.rendered()
            done += 1
            bar.update(done, len(todo))


def drawn_strip(sheet: SheetValue, layout: str, columns: str, rows: str, title: str) -> tuple[list[Path], Tensor]:
    """The pages of a grid as PNG files (with HTML, CSV and JSON) and as an IMAGE batch. Raises ConfigError for an unknown axis."""
    loaded = load_sheet(Path(sheet.folder), sheet.name)
    heading = title.strip() or sheet.title
    name = "strip-" + digest([sheet.name, layout, columns, rows, heading])[:16]
    if layout == "panels":
        paths, _ = write_panels(loaded, title=heading, name=name)
    else:
        sides = [axes_of(text, what) for text, what in ((columns, "columns"), (rows, "rows"))]
        paths = write_strips(loaded, columns=sides[0], rows=sides[1], title=heading, name=name)
        write_tables(loaded, columns=sides[0], rows=sides[1], title=heading, name=name)
    return paths, files_to_image(paths)


def axes_of(text: str, what: str) -> list[str]:
    """The axes of "checkpoint, seed". Raises ConfigError for an unknown one."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in AXES]:
        raise ConfigError(f"{what} = {text!r}: {unknown[0]!r} is not an axis; choose from {', '.join(AXES)}")
    return names
