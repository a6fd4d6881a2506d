"""A contact sheet: every image of a set with its caption, and the crop that training will see."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..records import Geometry
from ..text_drawing import INK, LINE, MUTED, PAPER, wrap, write
from .images import flatten

CELL, TEXT_LINES, GAP, MARGIN = 192, 3, 12, 20
MAX_CELLS = 120


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    path: Path
    caption: str
    geometry: Geometry | None = None
    """Where known, what is cut off is greyed out."""


def contact_sheet(thumbnails: Sequence[Thumbnail], title: str, columns: int = 6) -> Image.Image:
    """RGB. Sets of more than 120 images show the first 120 and say so."""
    shown = thumbnails[:MAX_CELLS]
    columns = min(columns, max(len(shown), 1))
    rows = -(-len(shown) // columns) if shown else 0
    height = CELL + TEXT_LINES * 16 + GAP
    if len(thumbnails) > MAX_CELLS:
        title = f"{title} (the first {MAX_CELLS} of {len(thumbnails)})"
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    heading = wrap(title, width - 2 * MARGIN, 17, bold=True)
    top = MARGIN + len(heading) * 23 + 8
    page = Image.new("RGB", (width, top + rows * height + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    write(pen, heading, MARGIN, MARGIN, 17, INK, bold=True)
    for index, thumbnail in enumerate(shown):
        x, y = MARGIN + index % columns * (CELL + GAP), top + index // columns * height
        picture = _picture(thumbnail)
        page.paste(picture, (x + (CELL - picture.width) // 2, y + (CELL - picture.height) // 2))
        pen.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=LINE)
        lines = wrap(thumbnail.caption, CELL, 12)
        if len(lines) > TEXT_LINES:
            lines = [*lines[: TEXT_LINES - 1], lines[TEXT_LINES - 1] + " …"]
        write(pen, lines, x, y + CELL + 3, 12, MUTED)
    return page


def _picture(thumbnail: Thumbnail) -> Image.Image:
    """The image in a cell; outside the crop it is pale."""
    with Image.open(thumbnail.path) as image:
        flat = flatten(ImageOps.exif_transpose(image), (255, 255, 255))
    geometry = thumbnail.geometry
    if geometry is not None:
        scale = flat.width / geometry.resized[0], flat.height / geometry.resized[1]
        left, top = geometry.crop_left * scale[0], geometry.crop_top * scale[1]
        box = tuple(
            round(v) for v in (left, top, left + geometry.target[0] * scale[0], top + geometry.target[1] * scale[1])
        )
        pale = Image.blend(flat, Image.new("RGB", flat.size, PAPER), 0.65)
        pale.paste(flat.crop(box), box[:2])  # type: ignore[arg-type]
        flat = pale
    return ImageOps.contain(flat, (CELL, CELL), Image.Resampling.LANCZOS)
