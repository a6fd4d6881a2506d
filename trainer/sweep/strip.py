"""The strip: the cells of a sweep in a labelled grid, as PNG. Labels keep their size: text wraps, large grids are split."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from PIL import Image, ImageDraw

from ..drawing.fonts import length
from ..drawing.text import BEST, INK, LEADING, LINE, MUTED, PAPER, wrap, write
from ..types import Cell

MARGIN, GAP = 24, 6
MIN_CELL = 160
"""Cells with a smaller width in pixels are enlarged."""

MAX_SIDE = 8192
"""Pages longer than this in pixels are split: cells keep their size, and every program can open the file."""
LABELS = 512
"""What is kept free of MAX_SIDE for margins, title and headings."""
SIDE = 1.2
"""Widest row label over a cell's width."""
FRAMED = "   ·   framed: recommended by the scores"
FRAME = 4
"""Width of the frame round the best cell, in pixels."""

AXES: dict[str, Callable[[Cell], str]] = {
    "checkpoint": lambda cell: cell.checkpoint,
    "strength": lambda cell: f"strength {cell.strength:g}" if cell.strength else "",
    "prompt": lambda cell: cell.prompt_name or cell.prompt or "(empty prompt)",
    "seed": lambda cell: f"seed {cell.seed}",
    "guidance": lambda cell: cell.guidance,
    "reference": lambda cell: cell.reference,
    "size": lambda cell: "{} x {}".format(*cell.settings["size"]) if "size" in cell.settings else "",
    "steps": lambda cell: f"{cell.settings['steps']} steps" if "steps" in cell.settings else "",
    "sampler": lambda cell: (
        f"{cell.settings['sampler']}, {cell.settings['scheduler']}" if "sampler" in cell.settings else ""
    ),
}
RENDERING = ("sampler", "steps", "size")
"""Axes that stand together at the end of the legend."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One page: labels of columns and rows, and the cells at their crossings."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    """{(row, column): cell}; a place may be empty."""
    title: str
    legend: str
    caption: str = ""
    """Text below the cells: the prompt that all of them share, or what the names of prompts stand for."""
    best: frozenset[tuple[str, str]] = frozenset()
    """Places of the cells that get a frame."""


def arrange(
    cells: Sequence[Cell], *, columns: Sequence[str], rows: Sequence[str], title: str, best: Collection[str] = ()
) -> list[Grid]:
    """Cut a sweep into pages. Axes named on neither side split it; axes with one value go into the legend.

    `best` holds the ids of cells to frame. Raises KeyError on an unknown axis.
    """
    for axis in (*columns, *rows):
        AXES[axis]
    varying = [axis for axis in AXES if len({AXES[axis](cell) for cell in cells if AXES[axis](cell)}) > 1]
    rest = [axis for axis in varying if axis not in (*columns, *rows)]
    across, down = ([axis for axis in side if axis in varying] for side in (columns, rows))
    pages: dict[str, list[Cell]] = {}
    for cell in cells:
        pages.setdefault(label(cell, rest), []).append(cell)
    grids = []
    for members in pages.values():
        page = label(members[0], [axis for axis in rest if axis != "prompt"])
        places = {(label(cell, down), label(cell, across)): cell for cell in members}
        grids.append(
            Grid(
                columns=_distinct(label(cell, across) for cell in members),
                rows=_distinct(label(cell, down) for cell in members),
                title=f"{title}: {page}" if page else title,
                legend=_legend(cells, [*varying, "prompt"]) + (FRAMED if best else ""),
                caption=_caption(members),
                cells=places,
                best=frozenset(place for place, cell in places.items() if cell.id in best),
            )
        )
    return grids


def _caption(cells: Sequence[Cell]) -> str:
    """The prompt in full, if there is one; of several, what the named ones stand for."""
    prompts = list(dict.fromkeys((cell.prompt_name, cell.prompt or "(empty prompt)") for cell in cells))
    if len(prompts) == 1:
        return prompts[0][1]
    return "\n".join(f"{name}: {prompt}" for name, prompt in prompts if name)


def split(grid: Grid) -> list[Grid]:
    """Pages no longer than MAX_SIDE where whole cells allow it, with as many cells each as the others."""
    (width, _), height = _cell_size(grid), _rows(grid).height
    parts = []
    for rows in _shares(grid.rows, height):
        for columns in _shares(grid.columns, width, int(width * SIDE) if any(grid.rows) else 0):
            inside = {place for place in grid.cells if place[0] in rows and place[1] in columns}
            part = replace(
                grid,
                rows=rows,
                columns=columns,
                cells={place: cell for place, cell in grid.cells.items() if place in inside},
                best=grid.best & inside,
            )
            parts += [part] if inside else []
    if len(parts) == 1:
        return parts
    return [replace(part, title=f"{grid.title} ({i + 1} of {len(parts)})") for i, part in enumerate(parts)]


def _shares(labels: tuple[str, ...], side: int, reserved: int = 0) -> list[tuple[str, ...]]:
    most = max(1, (MAX_SIDE - LABELS - reserved) // (side + GAP))
    count = -(-len(labels) // most)
    size = -(-len(labels) // count)
    return [labels[i : i + size] for i in range(0, len(labels), size)]


def panels(cells: Sequence[Cell], titles: dict[tuple[str, str], str], *, title: str) -> Grid:
    """A three-panel page: `titles` maps (checkpoint, guidance) to a column heading, e.g. base, LoRA, LoRA + APG."""
    chosen = [cell for cell in cells if (cell.checkpoint, cell.guidance) in titles]
    varying = [axis for axis in ("prompt", "seed") if len({AXES[axis](cell) for cell in chosen}) > 1]
    return Grid(
        columns=tuple(titles.values()),
        rows=_distinct(label(cell, varying) for cell in chosen),
        title=title,
        legend=_legend(chosen, [*varying, "checkpoint", "guidance", "strength", "prompt"]),
        caption=_caption(chosen),
        cells={(label(cell, varying), titles[cell.checkpoint, cell.guidance]): cell for cell in chosen},
    )


def label(cell: Cell, axes: Sequence[str]) -> str:
    """The values of a cell on these axes, one per line."""
    return "\n".join(text for axis in axes if (text := AXES[axis](cell)))


def _distinct(labels: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))


def _legend(cells: Sequence[Cell], varying: Sequence[str]) -> str:
    """The settings that all cells share."""
    first = cells[0]
    parts = [text for axis in AXES if axis not in (*varying, *RENDERING) and (text := AXES[axis](first))]
    if first.negative:
        parts.append(f"negative: {first.negative}")
    if made := ", ".join(text for axis in RENDERING if axis not in varying and (text := AXES[axis](first))):
        parts.append(made)
    return "   ·   ".join(parts)


def draw(grid: Grid) -> Image.Image:
    """The page as an RGB image."""
    cell_width, cell_height = _cell_size(grid)
    rows = _rows(grid)
    size, side, tall = rows.size, rows.side, rows.height
    step = round(size * LEADING)
    heads = [wrap(column, cell_width, size, bold=True) for column in grid.columns]
    head = max((len(lines) for lines in heads), default=0) * step if any(grid.columns) else 0
    width = max(2 * MARGIN + side + len(grid.columns) * (cell_width + GAP) - GAP, 420)
    title = wrap(grid.title, width - 2 * MARGIN, size + 6, bold=True)
    legend = wrap(grid.legend, width - 2 * MARGIN, size - 1)
    top = MARGIN + len(title) * round((size + 6) * LEADING) + len(legend) * step + 10
    caption = wrap(grid.caption, width - 2 * MARGIN - side, size) if grid.caption else []
    bottom = top + head + len(grid.rows) * (tall + GAP) - GAP
    height = bottom + (10 + len(caption) * step if caption else 0) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    y = write(pen, title, MARGIN, MARGIN, size + 6, INK, bold=True)
    write(pen, legend, MARGIN, y, size - 1, MUTED)
    for index, lines in enumerate(heads):
        x = MARGIN + side + index * (cell_width + GAP)
        write(pen, lines, x, top + head - len(lines) * step, size, INK, bold=True)
    for down, row in enumerate(grid.rows):
        y = top + head + down * (tall + GAP)
        write(pen, rows.labels[down], MARGIN, y + 4, size, INK)
        for across, column in enumerate(grid.columns):
            x = MARGIN + side + across * (cell_width + GAP)
            _place(page, pen, grid.cells.get((row, column)), (x, y, cell_width, cell_height))
            if (row, column) in grid.best:
                pen.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), outline=BEST, width=FRAME)
    write(pen, caption, MARGIN + side, bottom + 10, size, INK)
    return page


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of a page in pixels: font size, width of the labels, their lines, height of each row."""

    size: int
    side: int
    labels: list[list[str]]
    height: int


def _rows(grid: Grid) -> _Rows:
    """The rows of a page. A row is as high as its cells or its longest label, so that prompts do not run into the next row."""
    width, height = _cell_size(grid)
    size = max(13, min(width // 14, 26))
    longest = max((length(line, size) for row in grid.rows for line in row.split("\n")), default=0)
    side = ceil(min(longest, width * SIDE)) + (16 if any(grid.rows) else 0)
    labels = [wrap(row, side - 16, size) if row else [] for row in grid.rows]
    tall = max([height, *(4 + len(lines) * round(size * LEADING) for lines in labels)])
    return _Rows(size=size, side=side, labels=labels, height=tall)


def _cell_size(grid: Grid) -> tuple[int, int]:
    """The size of the largest cell, enlarged by a whole factor if cells are small."""
    sizes = []
    for cell in grid.cells.values():
        with Image.open(cell.image) as image:
            sizes.append(image.size)
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    factor = -(-MIN_CELL // max(width, 1)) if width < MIN_CELL else 1
    return width * factor, height * factor


def _place(page: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell | None, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    if cell is None:
        pen.rectangle((x, y, x + width - 1, y + height - 1), outline=LINE)
        return
    with Image.open(cell.image) as image:
        scale = min(width / image.width, height / image.height)
        scaled = image.convert("RGB").resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
    page.paste(scaled, (x + (width - scaled.width) // 2, y + (height - scaled.height) // 2))
