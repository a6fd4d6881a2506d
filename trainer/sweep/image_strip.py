"""A strip of any images, such as those that `submit` fetched: labelled, in rows, without a sweep."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..drawing.text import PAPER
from ..errors import ConfigError, DataError, RunError
from ..types import Cell
from .loras import by_number, file_labels
from .strip import Grid, draw

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OWN = "strip"
"""How the files begin that a strip is written to; they are none of its images."""
MOST = 1000
"""Most images of one strip."""


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders, sorted by number. Raises RunError if there are none, DataError for more than `MOST`."""
    found = [
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith((OWN, "."))
    ]
    if not found:
        raise RunError(f"{folder} holds no finished sheet and no images ({', '.join(SUFFIXES)}): run the sweep first")
    if len(found) > MOST:
        raise DataError(f"{folder} holds {len(found)} images, a strip has at most {MOST}: name a smaller folder")
    return sorted(found, key=by_number)


def image_strip(paths: Sequence[Path], labels: Sequence[str], *, columns: int, title: str) -> Image.Image:
    """The images with their labels, `columns` in a row (0: all in one row).

    Raises ConfigError unless there is one label for each image (or none: what differs of their file names), and DataError for
    an unreadable one.
    """
    if labels and len(labels) != len(paths):
        raise ConfigError(f"labels are {len(labels)} for {len(paths)} images: give one for each, or none")
    named = list(labels) or file_labels(paths)
    for path in paths:
        try:
            with Image.open(path) as image:
                image.verify()
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as an image ({error}): leave it out") from error
    width = columns or len(paths)
    pages = [
        draw(_row(paths[start : start + width], named[start : start + width], title if not start else ""))
        for start in range(0, len(paths), width)
    ]
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), PAPER)
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole


def _row(paths: Sequence[Path], labels: Sequence[str], title: str) -> Grid:
    """Equal labels get a number, because a grid has one cell for each."""
    headings = [
        f"{label} ({labels[: i + 1].count(label)})" if labels.count(label) > 1 else label
        for i, label in enumerate(labels)
    ]
    cells = {
        ("", heading): Cell(
            id=str(number), image=path, checkpoint=heading, strength=0.0, prompt="", negative="", seed=0, guidance=""
        )
        for number, (heading, path) in enumerate(zip(headings, paths, strict=True))
    }
    return Grid(columns=tuple(headings), rows=("",), cells=cells, title=title, legend="")
