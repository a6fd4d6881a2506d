"""A contact sheet: every image of a dataset with its name, caption, crop and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..drawing.fonts import length
from ..drawing.text import BEST, INK, LINE, MUTED, PAPER, wrap, write
from ..errors import DataError
from ..types import Geometry
from .images.load import flatten, opened
from .report import Report, enlargement, namer
from .sets.dataset import Dataset

CELL, GAP, MARGIN = 192, 14, 20
NAME, SMALL, LINE_HEIGHT = 12, 11, 16
TEXT_LINES = 3
"""Number of lines of the caption that are printed."""
MAX_CELLS = 120
CROP = BEST


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """The content of one cell of a contact sheet."""

    path: Path
    caption: str
    geometry: Geometry | None = None
    """Where given, the area that is cropped away is pale and the crop is framed."""
    note: str = ""
    """Sizes, or repeats."""
    warning: str = ""


def thumbnails(dataset: Dataset, report: Report) -> list[Thumbnail]:
    """One thumbnail per example. Those with warnings come first, so that a large dataset has them on its first page."""
    copies = {name for group in report.copies for name in group}
    alike = {name for group in report.near_duplicates or [] for name in group}
    name, cells = namer(dataset), []
    for example in dataset.examples:
        geometry, factor = example.geometry, enlargement(example)
        warnings = [f"upscaled {factor:.2f} x"] if factor > 1 else []
        warnings += ["the same file twice"] if name(example.path) in copies else []
        warnings += ["near-duplicate"] if name(example.path) in alike else []
        role = "" if example.role == "train" else f"{example.role.replace('_', ' ')}, "
        repeats = f", {example.repeats} x" if example.repeats > 1 else ""
        note = f"{role}{_size(geometry.original)} → {_size(geometry.target)}{repeats}"
        cells.append(
            Thumbnail(
                path=example.path,
                caption=example.captions[0],
                geometry=geometry,
                note=note,
                warning=", ".join(warnings),
            )
        )
    return sorted(cells, key=lambda cell: not cell.warning)


def contact_sheet(cells: Sequence[Thumbnail], title: str, columns: int = 6) -> Image.Image:
    """The first 120 thumbnails as one RGB image; the title says so if there are more. `contact_sheets` draws all of them."""
    if len(cells) > MAX_CELLS:
        title = f"{title} (the first {MAX_CELLS} of {len(cells)})"
    return _page(cells[:MAX_CELLS], title, columns)


def contact_sheets(cells: Sequence[Thumbnail], title: str, columns: int = 6) -> list[Image.Image]:
    """All thumbnails, 120 per page."""
    pages = [cells[start : start + MAX_CELLS] for start in range(0, len(cells), MAX_CELLS)] or [cells]
    return [
        _page(page, f"{title}, page {number} of {len(pages)}" if len(pages) > 1 else title, columns)
        for number, page in enumerate(pages, 1)
    ]


def _page(cells: Sequence[Thumbnail], title: str, columns: int) -> Image.Image:
    columns = min(columns, max(len(cells), 3))
    lines = [1 + bool(cell.note) + bool(cell.warning) + len(_caption(cell)) for cell in cells]
    rows = [max(lines[start : start + columns]) for start in range(0, len(cells), columns)]
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    heading = wrap(title, width - 2 * MARGIN, 17, bold=True)
    y = MARGIN + len(heading) * 23 + 8
    height = y + sum(CELL + count * LINE_HEIGHT + GAP for count in rows) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    write(pen, heading, MARGIN, MARGIN, 17, INK, bold=True)
    for row, count in enumerate(rows):
        for column, thumbnail in enumerate(cells[row * columns : (row + 1) * columns]):
            _cell(page, pen, thumbnail, MARGIN + column * (CELL + GAP), y)
        y += CELL + count * LINE_HEIGHT + GAP
    return page


def _cell(page: Image.Image, pen: ImageDraw.ImageDraw, thumbnail: Thumbnail, x: int, y: int) -> None:
    image = _cropped(thumbnail)
    page.paste(image, (x + (CELL - image.width) // 2, y + (CELL - image.height) // 2))
    pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=BEST if thumbnail.warning else LINE)
    y += CELL + 3
    write(pen, [shortened(thumbnail.path.name, CELL)], x, y, NAME, INK)
    y += LINE_HEIGHT
    for text, colour in ((thumbnail.note, MUTED), (thumbnail.warning, BEST)):
        if text:
            write(pen, [text], x, y, SMALL, colour)
            y += LINE_HEIGHT
    write(pen, _caption(thumbnail), x, y, SMALL, MUTED)


def _caption(thumbnail: Thumbnail) -> list[str]:
    lines = wrap(thumbnail.caption or "(no caption)", CELL - 8, SMALL)
    return lines if len(lines) <= TEXT_LINES else [*lines[: TEXT_LINES - 1], lines[TEXT_LINES - 1] + " …"]


def shortened(name: str, width: int) -> str:
    """A name of at most `width` pixels. Its middle is left out, since the ends tell files apart; control characters become spaces."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    keep, short = len(name), name
    while length(short, NAME) > width and keep > 2:
        keep -= 1
        short = f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"
    return short


def _cropped(thumbnail: Thumbnail) -> Image.Image:
    """The image of a thumbnail: pale outside the crop, with a frame around the crop."""
    try:
        with opened(thumbnail.path) as image:
            image.draft(None, (2 * CELL, 2 * CELL))  # JPEGs are decoded no larger than needed
            flat = flatten(ImageOps.exif_transpose(image), (255, 255, 255))
    except DataError:
        return _unreadable()
    flat = ImageOps.contain(flat, (CELL, CELL), Image.Resampling.LANCZOS)
    geometry = thumbnail.geometry
    if geometry is None:
        return flat
    across, down = flat.width / geometry.resized[0], flat.height / geometry.resized[1]
    left, top = round(geometry.crop_left * across), round(geometry.crop_top * down)
    right = min(flat.width, round((geometry.crop_left + geometry.target[0]) * across))
    bottom = min(flat.height, round((geometry.crop_top + geometry.target[1]) * down))
    if (left, top, right, bottom) != (0, 0, flat.width, flat.height):
        pale = Image.blend(flat, Image.new("RGB", flat.size, PAPER), 0.65)
        pale.paste(flat.crop((left, top, right, bottom)), (left, top))
        ImageDraw.Draw(pale).rectangle((left, top, right - 1, bottom - 1), outline=CROP, width=2)
        return pale
    return flat


def _unreadable() -> Image.Image:
    blank = Image.new("RGB", (CELL, CELL // 2), LINE)
    write(ImageDraw.Draw(blank), ["cannot be read"], 40, CELL // 4 - 8, NAME, BEST)
    return blank


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
