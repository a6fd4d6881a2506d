"""A sweep as one self-contained HTML file: zoom, the settings of each cell, two cells under a slider. Also as CSV and JSON.

No text of a sheet is parsed as markup: it is JSON in an inert element, which the script of the page inserts as text.
"""

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..types import Cell, Record
from .strip import Grid

TEMPLATE = Path(__file__).with_name("html_page.html")
LOSSLESS_BYTES = 64 * 2**20
"""Above this size the page holds the images as WebP, so that browsers can open it; the PNG files stay as they are."""
WEBP_QUALITY = 92
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a text that a spreadsheet would compute."""


def to_html(grids: Sequence[Grid], title: str) -> str:
    """The HTML page. It contains the images as PNG, or as WebP above `LOSSLESS_BYTES`."""
    cells = {cell.id: cell for grid in grids for cell in grid.cells.values()}
    lossless = sum(cell.image.stat().st_size for cell in cells.values()) <= LOSSLESS_BYTES
    data = {
        "title": title,
        "note": "" if lossless else "The images in this page are WebP; the PNG files in the same folder are lossless.",
        "pages": [page_of(grid) for grid in grids],
        "cells": {
            cell_id: {"image": _image(cell.image, lossless), "recipe": recipe(cell)} for cell_id, cell in cells.items()
        },
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    parts = {"TITLE": html.escape(title), "SCRIPT_HASH": f"sha256-{digest}", "DATA": inert(data)}
    return re.sub("@@([A-Z_]+)@@", lambda match: parts[match[1]], text)


def inert(data: object) -> str:
    """JSON without characters that could end the HTML element that contains it."""
    text = json.dumps(data, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_of(grid: Grid) -> Record:
    """A page of the grid as plain data: labels, ids of the cells, ids of the recommended ones."""
    return {
        "title": grid.title,
        "legend": grid.legend,
        "caption": grid.caption,
        "columns": grid.columns,
        "rows": grid.rows,
        "cells": [[_id(grid.cells.get((row, column))) for column in grid.columns] for row in grid.rows],
        "best": sorted(grid.cells[place].id for place in grid.best),
    }


def _id(cell: Cell | None) -> str:
    return cell.id if cell else ""


def _image(path: Path, lossless: bool) -> str:
    if lossless:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "webp", quality=WEBP_QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def recipe(cell: Cell) -> Record:
    """The settings of a cell and its scores, in reading order: the columns of the CSV file."""
    settings = cell.settings
    width, height = settings.get("size", ("", ""))
    return {
        "checkpoint": cell.checkpoint,
        "strength": cell.strength,
        "prompt": cell.prompt,
        "negative": cell.negative,
        "seed": cell.seed,
        "guidance": cell.guidance,
        "reference": cell.reference,
        "sampler": settings.get("sampler", ""),
        "scheduler": settings.get("scheduler", ""),
        "steps": settings.get("steps", ""),
        "width": width,
        "height": height,
        "lora file": settings.get("lora_file", ""),
        "image": cell.image.name,
        **settings.get("scores", {}),
    }


def to_json(grids: Sequence[Grid], title: str) -> str:
    """The grid as JSON: the place of each cell on the pages, and its settings."""
    cells = {cell.id: cell for grid in grids for cell in grid.cells.values()}
    recipes = {cell_id: recipe(cell) for cell_id, cell in cells.items()}
    return json.dumps({"title": title, "pages": [page_of(grid) for grid in grids], "cells": recipes}, indent=1) + "\n"


def to_csv(cells: Sequence[Cell]) -> str:
    """CSV with one line per cell. A text that a spreadsheet would run as a formula gets a leading apostrophe."""
    lines = [recipe(cell) for cell in cells]
    names = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in line.items()} for line in lines)
    return buffer.getvalue()


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
