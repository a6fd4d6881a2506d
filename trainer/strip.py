"""The strip: pictures of a sweep in a labelled grid, one PNG. Labels never shrink: text wraps, wide strips are split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .records import Shot
from .text_drawing import INK, LEADING, LINE, MUTED, PAPER, font, wrap, write

MARGIN, GAP = 24, 6
MIN_CELL = 160
"""Pictures smaller than this are shown enlarged, so that they can be judged."""

AXES: dict[str, Callable[[Shot], str]] = {
    "checkpoint": lambda shot: shot.checkpoint,
    "strength": lambda shot: f"strength {shot.strength:g}" if shot.strength else "",
    "prompt": lambda shot: shot.prompt or "(empty prompt)",
    "seed": lambda shot: f"seed {shot.seed}",
    "guidance": lambda shot: shot.guidance,
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One page: labels along both sides and a picture (or nothing) where they meet."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: dict[tuple[str, str], Path]
    """{(row, column): picture}."""
    title: str
    legend: str


def arrange(shots: Sequence[Shot], *, columns: Sequence[str], rows: Sequence[str], title: str) -> list[Grid]:
    """Cut a sweep into pages. Axes named on neither side split it; axes with one value go into the legend.

    Raises KeyError on an unknown axis.
    """
    for axis in (*columns, *rows):
        AXES[axis]
    varying = [axis for axis in AXES if len({AXES[axis](shot) for shot in shots if AXES[axis](shot)}) > 1]
    pages: dict[str, list[Shot]] = {}
    for shot in shots:
        rest = [axis for axis in varying if axis not in (*columns, *rows)]
        pages.setdefault(label(shot, rest), []).append(shot)
    grids = []
    for page, members in pages.items():
        across, down = ([axis for axis in side if axis in varying] for side in (columns, rows))
        grids.append(
            Grid(
                columns=_distinct(label(shot, across) for shot in members),
                rows=_distinct(label(shot, down) for shot in members),
                cells={(label(shot, down), label(shot, across)): shot.image for shot in members},
                title=f"{title}: {page}" if page else title,
                legend=_legend(shots, varying),
            )
        )
    return grids


def panels(shots: Sequence[Shot], titles: dict[tuple[str, str], str], *, title: str) -> Grid:
    """A three-panel page: `titles` maps (checkpoint, guidance) to a column heading, e.g. base, LoRA, LoRA + APG."""
    chosen = [shot for shot in shots if (shot.checkpoint, shot.guidance) in titles]
    varying = [axis for axis in ("prompt", "seed") if len({AXES[axis](shot) for shot in chosen}) > 1]
    return Grid(
        columns=tuple(titles.values()),
        rows=_distinct(label(shot, varying) for shot in chosen),
        cells={(label(shot, varying), titles[shot.checkpoint, shot.guidance]): shot.image for shot in chosen},
        title=title,
        legend=_legend(chosen, [*varying, "checkpoint", "guidance", "strength"]),
    )


def label(shot: Shot, axes: Sequence[str]) -> str:
    return "\n".join(text for axis in axes if (text := AXES[axis](shot)))


def _distinct(labels: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))


def _legend(shots: Sequence[Shot], varying: Sequence[str]) -> str:
    """What is the same in every cell."""
    first = shots[0]
    parts = [text for axis in AXES if axis not in varying and (text := AXES[axis](first))]
    if first.negative:
        parts.append(f"negative: {first.negative}")
    recipe = first.settings
    if "sampler" in recipe:
        width, height = recipe["size"]
        parts.append(f"{recipe['sampler']}, {recipe['scheduler']}, {recipe['steps']} steps, {width} x {height}")
    return "   ·   ".join(parts)


def draw(grid: Grid) -> Image.Image:
    """The page as an RGB picture."""
    cell_width, cell_height = _cell_size(grid)
    size = max(13, min(cell_width // 14, 26))
    step = round(size * LEADING)
    side = max((font(size).getlength(line) for row in grid.rows for line in row.split("\n")), default=0)
    side = int(min(side, cell_width * 1.2)) + (16 if any(grid.rows) else 0)
    heads = [wrap(column, cell_width, size, bold=True) for column in grid.columns]
    head = max((len(lines) for lines in heads), default=0) * step if any(grid.columns) else 0
    width = max(2 * MARGIN + side + len(grid.columns) * (cell_width + GAP) - GAP, 420)
    title = wrap(grid.title, width - 2 * MARGIN, size + 6, bold=True)
    legend = wrap(grid.legend, width - 2 * MARGIN, size - 1)
    top = MARGIN + len(title) * round((size + 6) * LEADING) + len(legend) * step + 10
    height = top + head + len(grid.rows) * (cell_height + GAP) - GAP + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    y = write(pen, title, MARGIN, MARGIN, size + 6, INK, bold=True)
    write(pen, legend, MARGIN, y, size - 1, MUTED)
    for index, lines in enumerate(heads):
        x = MARGIN + side + index * (cell_width + GAP)
        write(pen, lines, x, top + head - len(lines) * step, size, INK, bold=True)
    for down, row in enumerate(grid.rows):
        y = top + head + down * (cell_height + GAP)
        if row:
            write(pen, wrap(row, side - 16, size), MARGIN, y + 4, size, INK)
        for across, column in enumerate(grid.columns):
            x = MARGIN + side + across * (cell_width + GAP)
            _place(page, pen, grid.cells.get((row, column)), (x, y, cell_width, cell_height))
    return page


def _cell_size(grid: Grid) -> tuple[int, int]:
    """The largest picture's size, enlarged by a whole factor where pictures are small."""
    sizes = []
    for path in grid.cells.values():
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    factor = -(-MIN_CELL // max(width, 1)) if width < MIN_CELL else 1
    return width * factor, height * factor


def _place(page: Image.Image, pen: ImageDraw.ImageDraw, path: Path | None, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    if path is None:
        pen.rectangle((x, y, x + width - 1, y + height - 1), outline=LINE)
        return
    with Image.open(path) as image:
        scale = min(width / image.width, height / image.height)
        shown = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
    page.paste(shown, (x + (width - shown.width) // 2, y + (height - shown.height) // 2))
