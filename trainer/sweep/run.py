"""From a run (or a list of LoRA files) to the cells of a sweep and its strips: the order of events and the side effects."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from ..base_model import Base, open_base
from ..choices import SAMPLERS, SCHEDULERS
from ..config.checks import parse_sizes
from ..config.prompt_library import all_prompts
from ..config.run import GuidanceConfig, SweepConfig, TrainConfig
from ..config.toml import digest
from ..data.cache.references import reference_placement
from ..diffusion.skip_layers import check_skip_layers
from ..errors import ConfigError, RunError, StoppedError
from ..eta import duration
from ..families.common.comfy_loaders import from_input_folder, literally, loaders, prompt_nodes
from ..lora.base_lora import BaseLora, BaseLoraIdentity, always, lay_base_loras
from ..lora_tools.base_loras import read_base_loras
from ..lora_tools.layouts import Formats
from ..runs.headless import run_folder
from ..runs.reference_images import check_references, read_references, unused_references
from ..runs.run_folder import RunFolder
from ..runs.session import Host
from ..storage.atomic import remove_leftovers, write_bytes, write_json
from ..storage.tensor_file import read_lora
from ..types import Cell
from .axes import parse_counts, parse_numbers, parse_samplers, parse_seeds
from .cell_workflow import MakeGraph, cell_graph, with_base_loras
from .cells import (
    BASE,
    Axes,
    CellRenderer,
    Rendering,
    SweptLora,
    count_cells,
    missing,
    plan_cells,
    render,
    sheet_from_dict,
    sheet_to_dict,
)
from .html_page import to_csv, to_html, to_json
from .loras import check_fits, expanded, read_loras, run_loras
from .strip import Grid, arrange, draw, panels, split

MOST_CELLS = 100_000


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A finished sweep on disk."""

    folder: Path
    """Holds sheet.json and cells/."""
    cells: tuple[Cell, ...]
    rendered: int
    """How many cells were rendered now; the others existed."""
    loras: Mapping[str, Path] = field(default_factory=dict)
    """{digest: file}, as it was when the sheet was made."""
    best: frozenset[str] = frozenset()
    """Ids of the cells that a score recommends."""


def make_axes(sweep: SweepConfig, loras: tuple[SweptLora, ...], seed: int) -> Axes:
    """The axes of a configured sweep. Raises ConfigError for an axis that is empty or cannot be parsed."""
    prompts = all_prompts(sweep.prompts, sweep.prompt_library, "sweep.prompt_library")
    if not prompts:
        raise ConfigError("sweep.prompts is empty: give at least one prompt, or a sweep.prompt_library")
    names = [setting.name for setting in sweep.guidance]
    if len(set(names)) != len(names):
        raise ConfigError(f"sweep.guidance has two settings of the same name {names}: give them labels")
    return Axes(
        loras=loras,
        base=sweep.base,
        strengths=tuple(parse_numbers("sweep.strengths", sweep.strengths)),
        prompts=tuple(prompts),
        prompt_names={prompt: name for prompt, name in prompts.items() if name},
        wildcards=sweep.wildcards,
        negative=sweep.negative_prompt,
        seeds=tuple(parse_seeds("sweep.seeds", sweep.seeds, seed)),
        guidance=sweep.guidance,
        references=read_references("sweep.references", sweep.references),
    )


def usual_guidance(asked: tuple[GuidanceConfig, ...], usual_scale: float) -> tuple[GuidanceConfig, ...]:
    """What is compared where nothing else is asked for: CFG 4, or no guidance for a model whose usual scale is 1."""
    is_default = asked == (GuidanceConfig(),)
    return (GuidanceConfig(scale=1.0),) if is_default and usual_scale == 1 else asked


def make_renderings(
    config: TrainConfig, base: Base, base_loras: Sequence[BaseLoraIdentity] = ()
) -> tuple[Rendering, ...]:
    """One rendering for every size, number of steps and sampler of the sweep. `base_loras` belong to the base. Raises ConfigError."""
    width, height = (side or config.data.resolution for side in (config.sweep.width, config.sweep.height))
    identity = base.encoder_identity()
    plain = Rendering(
        size=(width, height),
        steps=config.sweep.steps,
        sampler=config.sweep.sampler,
        scheduler=config.sweep.scheduler,
        model=digest([base.identity(), identity.vae, identity.text, *[one.fact() for one in base_loras]]),
        model_guidance=config.sweep.model_guidance if base.settings.guidance_embedding else 1.0,
    )
    made = vary(plain, sizes=config.sweep.sizes, step_counts=config.sweep.step_counts, samplers=config.sweep.samplers)
    check_sizes(made, base.family.bucket_step, base.family.name)
    return made


def vary(
    plain: Rendering,
    *,
    sizes: str,
    step_counts: str,
    samplers: str,
    known: tuple[Collection[str], Collection[str]] = (tuple(SAMPLERS), tuple(SCHEDULERS)),
) -> tuple[Rendering, ...]:
    """One rendering for every combination of the listed values; an empty list keeps that of `plain`. Raises ConfigError."""
    every_size = parse_sizes("sweep.sizes", sizes) or [plain.size]
    every_count = parse_counts("sweep.step_counts", step_counts) if step_counts.strip() else [plain.steps]
    every_sampler = parse_samplers("sweep.samplers", samplers, *known) or [(plain.sampler, plain.scheduler)]
    return tuple(
        replace(plain, size=size, steps=steps, sampler=sampler, scheduler=scheduler)
        for size, steps, (sampler, scheduler) in product(
            dict.fromkeys(every_size), dict.fromkeys(every_count), dict.fromkeys(every_sampler)
        )
    )


def check_sizes(renderings: Sequence[Rendering], step: int, whose: str) -> None:
    """Raise ConfigError for a size that the model cannot make."""
    for width, height in (rendering.size for rendering in renderings):
        if width % step or height % step:
            raise ConfigError(f"sweep size, width and height = {width}, {height}: {whose} needs multiples of {step}")


def check_count(axes: Axes, renderings: Sequence[Rendering]) -> None:
    """Raise ConfigError for a sweep with more than `MOST_CELLS` cells, before it is planned."""
    if (count := count_cells(axes, renderings)) > MOST_CELLS:
        raise ConfigError(f"the sweep has {count:,} cells; {MOST_CELLS:,} is the limit: use fewer values on its axes")


@dataclass(kw_only=True)
class LargeSweepPrompt:
    """Estimates after the second cell how long a large sweep will take. The first cell is not timed: it also warms up."""

    cells: int
    limit: int
    confirm: Callable[[str], bool]
    _done: int = 0
    _since: float = 0.0

    def rendered(self) -> None:
        """Call after each cell. Raises ConfigError if the sweep is large and `confirm` returns False."""
        self._done += 1
        now = time.perf_counter()
        if self._done == 2 and self.cells > self.limit:
            seconds = (self.cells - 2) * (now - self._since)
            text = f"{self.cells:,} cells to render, about {duration(seconds)}"
            if not self.confirm(text):
                raise ConfigError(
                    f"{text}; more than sweep.max_cells = {self.limit}: confirm it (--yes), raise max_cells, or use fewer values. The two rendered cells are kept"
                )
        self._since = now


def sweep(
    config: TrainConfig,
    host: Host,
    lora_files: Sequence[Path] = (),
    confirm: Callable[[str], bool] = lambda question: False,
) -> Sheet:
    """Render the missing cells and write `sheet.json`. A stopped sweep keeps its cells and resumes the next time.

    `confirm` gets a question with the estimated time before more than `sweep.max_cells` cells are rendered.
    """
    base = open_base(config.model, config.text, config.objective)
    base.check_encoders()
    check_references("sweep.references", config.sweep.references, base)
    base.check_guidance("sweep.model_guidance", config.sweep.model_guidance, SweepConfig.model_guidance)
    skeleton = base.skeleton()
    for one in config.sweep.guidance:
        check_skip_layers("sweep.guidance.skip_layers", one.skip_layers, skeleton.module, base.family.name)
    base_loras = always(read_base_loras(config, base, skeleton))
    renderings = make_renderings(config, base, [one.identity for one in base_loras])
    run = run_folder(config)
    given = expanded(lora_files)
    loras = read_loras(given, run) if given else run_loras(run, "train it first, or name files with --lora")
    chosen = replace(config.sweep, guidance=usual_guidance(config.sweep.guidance, base.settings.guidance_scale))
    axes = make_axes(chosen, loras, config.training.seed)
    folder = run.path / "strips"
    check_count(axes, renderings)
    cells = plan_cells(axes, renderings, folder / "cells")
    remove_leftovers(folder, folder / "cells")
    todo = missing(cells)
    host.log(f"sweep: {len(cells)} cells, {len(cells) - len(todo)} already there")
    for line in base_notes(run, base_loras):
        host.log(line)
    if alone := unused_references("sweep.references", config.sweep.references, base):
        host.log(alone)
    if todo:
        wanted = {cell.settings["lora"] for cell in todo}
        check_fits([lora for lora in axes.loras if lora.digest in wanted], base)
        renderer = CellRenderer(
            denoiser=base.load_denoiser(config.model, config.training.precision),
            family=base.family,
            encoders=base.load_encoders(),
            text_pixels=base.settings.text_pixels,
        )

        lay_base_loras(renderer.denoiser.module, base_loras)

        def progress(done: int, total: int) -> None:
            host.stage("rendering", done, total)

        formats = Formats(family=base.family, denoiser=renderer.denoiser)
        asking = LargeSweepPrompt(cells=len(todo), limit=config.sweep.max_cells, confirm=confirm)
        graph = graphs_of(config, base, axes)
        for _ in render(todo, renderer, axes, lambda path: formats.native(read_lora(path)), progress, graph):
            asking.rendered()
            if host.should_stop():
                raise StoppedError("the sweep was stopped; finished cells are kept, run it again to go on")
    places = {lora.digest: lora.path.resolve() for lora in axes.loras}
    write_json(folder / "sheet.json", sheet_to_dict(cells, loras=places))
    return Sheet(folder=folder, cells=tuple(cells), rendered=len(todo), loras=places)


def base_notes(run: RunFolder, base_loras: Sequence[BaseLora]) -> list[str]:
    """Which LoRAs belong to the base in all cells, and which of the run's are missing."""
    lines = [f"all cells, those of the base too, are made with {one.identity.text()}" for one in base_loras]
    had = run.read().get("base_loras", []) if run.exists() else []
    here = {one.identity.digest for one in base_loras}
    lost = [one for one in had if one["use"] == "always" and one["strength"] and one["digest"] not in here]
    return lines + [
        f"run {run.name} was trained on top of {one['file'] or 'a LoRA that was loaded into the MODEL'} at {one['strength']:g}, which these cells are without: name it in [[model.base_lora]]"
        for one in lost
    ]


def graphs_of(config: TrainConfig, base: Base, axes: Axes) -> MakeGraph:
    """The graph of each cell, with the base in ComfyUI's loaders."""
    below = [(Path(one.file).name, one.strength) for one in config.model.base_lora if one.use == "always"]
    nodes, links = with_base_loras(*loaders(base.source, base.family.comfy, base.reading), below)
    places = {reference.digest: reference.paths for reference in axes.references}
    comfy = base.family.comfy

    def wording(prompt: str) -> str:
        return comfy.wording(prompt, base.reading)

    def make(cell: Cell, lora: Path | None, guidance: GuidanceConfig) -> dict[str, str]:
        size = tuple(cell.settings["size"])
        paths = places.get(cell.settings.get("reference", ""), ())
        references = [(from_input_folder(path.name), reference_placement(path, size).target) for path in paths]
        prompt_node = prompt_nodes(links["vae"], references, comfy.edit_prompts.get(base.variant), wording)
        prompt_node = prompt_node if base.reading.prompt_weights else literally(prompt_node)
        distilled = base.settings.guidance_embedding
        # As LoraLoader lists it where output.loras is ComfyUI's folder; else to be chosen there.
        name = f"{config.name}/{lora.name}" if lora and config.output.loras else lora.name if lora else ""
        return cell_graph(
            cell, guidance, nodes, links, lora=name, lora_to_clip=True, distilled=distilled, prompt_node=prompt_node
        )

    return make


def find_sheet(path: Path) -> tuple[Path, str]:
    """Returns (folder, name) of a sheet: of the .json file itself, or of the newest in a folder. The command line writes sheet.json,
    LoomSweep one file per sweep, and LoomScore another. Raises RunError where there is none."""
    if path.is_file():
        return path.parent, path.stem
    sheets = sorted(path.glob("sheet*.json"), key=lambda sheet: sheet.stat().st_mtime_ns)
    if not sheets:
        raise RunError(f"{path} holds no finished sheet: run the sweep first")
    return path, sheets[-1].stem


def load_sheet(folder: Path, name: str = "sheet") -> Sheet:
    """A sheet from disk, all of whose images are whole. Raises RunError if it is not there or damaged."""
    remove_leftovers(folder, folder / "cells")
    path = folder / f"{name}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder} holds no finished sheet ({error}): run the sweep first") from error
    try:
        sheet = Sheet(
            folder=folder,
            cells=tuple(sheet_from_dict(data, folder / "cells")),
            rendered=0,
            loras={digest: Path(path) for digest, path in data.get("loras", {}).items()},
            best=frozenset(data.get("best", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}): run the sweep again") from error
    if broken := missing(sheet.cells):
        raise RunError(
            f"{len(broken)} of {len(sheet.cells)} images of {path} are gone or damaged, first {broken[0].image.name}: run the sweep again, which renders only these"
        )
    return sheet


def write_strips(
    sheet: Sheet,
    *,
    columns: Sequence[str],
    rows: Sequence[str],
    title: str,
    name: str = "strip",
) -> list[Path]:
    """One PNG per page in the sheet's folder: strip.png, strip-2.png, … Pages above `MAX_SIDE` are split."""
    pages = arrange(sheet.cells, columns=columns, rows=rows, title=title, best=sheet.best)
    grids = [part for page in pages for part in split(page)]
    return [
        write_grid(grid, sheet.folder / (f"{name}-{i + 1}.png" if i else f"{name}.png")) for i, grid in enumerate(grids)
    ]


def write_tables(
    sheet: Sheet, *, columns: Sequence[str], rows: Sequence[str], title: str, name: str = "strip"
) -> list[Path]:
    """Write the grid as strip.html, and the settings of each cell as strip.csv and strip.json."""
    return write_page(
        sheet, arrange(sheet.cells, columns=columns, rows=rows, title=title, best=sheet.best), title, name
    )


def write_panels(sheet: Sheet, *, title: str, name: str = "strip") -> tuple[list[Path], list[Path]]:
    """Three panels side by side: base, last LoRA, last LoRA with APG. Returns ([the image], [HTML, CSV, JSON]). Raises ConfigError."""
    grid = panels(sheet.cells, panel_titles(sheet), title=title)
    return [write_grid(grid, sheet.folder / f"{name}.png")], write_page(sheet, [grid], title, name)


def panel_titles(sheet: Sheet) -> dict[tuple[str, str], str]:
    """Titles of the three panels: base, last LoRA, last LoRA with APG. Raises ConfigError if the sweep lacks one of them."""
    guidance = list(dict.fromkeys(cell.guidance for cell in sheet.cells))
    methods = {cell.guidance: cell.settings["guidance"]["method"] for cell in sheet.cells}
    plain = next((name for name in guidance if methods[name] == "cfg"), None)
    apg = next((name for name in guidance if methods[name] == "apg"), None)
    last = sheet.cells[-1].checkpoint
    if plain is None or apg is None or last == BASE or not any(cell.checkpoint == BASE for cell in sheet.cells):
        raise ConfigError(
            "layout panels needs the base, a LoRA, and guidance of both kinds: include_base (sweep.base) on, and two LoomGuidance nodes (two [[sweep.guidance]]) with the methods cfg and apg"
        )
    return {(BASE, plain): "Base", (last, plain): f"LoRA, {last}", (last, apg): f"LoRA, {last}, APG"}


def write_page(sheet: Sheet, grids: Sequence[Grid], title: str, name: str) -> list[Path]:
    """Write HTML, CSV and JSON of pages."""
    cells = list({cell.id: cell for grid in grids for cell in grid.cells.values()}.values())
    page, table, data = (sheet.folder / f"{name}.{kind}" for kind in ("html", "csv", "json"))
    write_bytes(page, to_html(grids, title).encode())
    write_bytes(table, to_csv(cells).encode("utf-8-sig"))  # spreadsheets recognise UTF-8 by the byte order mark
    write_bytes(data, to_json(grids, title).encode())
    return [page, table, data]


def write_grid(grid: Grid, path: Path) -> Path:
    """Write one page as a PNG file, and return its path."""
    import io

    buffer = io.BytesIO()
    draw(grid).save(buffer, "png", optimize=True)
    write_bytes(path, buffer.getvalue())
    return path
