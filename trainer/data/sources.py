"""Finding images: a folder becomes a list of files with captions. Nothing is decoded here."""

from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DataError
from .captions import read_caption, sidecar
from .images import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    path: Path
    caption: str
    mask: Path | None
    """The image itself where its own alpha channel is the mask."""
    reference: Path | None
    """What an edit model is shown beside it."""


def find_images(config: DatasetConfig) -> list[ImageFile]:
    """The images of one set, sorted by path. Raises DataError naming every problem at once."""
    folder = Path(config.folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"dataset.folder: {folder} is not a folder")
    candidates = sorted(folder.rglob("*") if config.recursive else folder.iterdir())
    paths = [path for path in candidates if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."]
    if not paths:
        raise DataError(_nothing_found(folder, candidates, recursive=config.recursive))
    kind = config.captions
    if kind == "auto":
        kind = "sidecar" if any(sidecar(path) for path in paths) else "filename"
    problems: list[str] = []
    images = []
    for path in paths:
        try:
            caption = read_caption(path, kind, config.caption, config.trigger)
            mask = path if config.masks == "alpha" else _twin(path, folder, config.masks, "masks")
            reference = _twin(path, folder, config.references, "references")
            images.append(ImageFile(path=path, caption=caption, mask=mask, reference=reference))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(problem_list(problems))
    return images


def problem_list(problems: list[str], most: int = 10) -> str:
    more = f"\n… and {len(problems) - most} more" if len(problems) > most else ""
    return "\n".join(problems[:most]) + more


def _nothing_found(folder: Path, candidates: list[Path], *, recursive: bool) -> str:
    kinds = ", ".join(sorted(SUFFIXES))
    others = sorted({path.suffix.lower() for path in candidates if path.is_file()})
    message = f"{folder} holds no images ({kinds})"
    if others:
        message += f"; it holds {', '.join(suffix or 'files without extension' for suffix in others)}: convert them"
    elif not recursive and any(path.is_dir() for path in candidates):
        message += "; it has sub-folders: set dataset.recursive = true, or name one of them"
    return message


def _twin(image: Path, folder: Path, other: str, option: str) -> Path | None:
    """The image of the same name in another folder; None if no folder is given. Raises DataError if it is missing."""
    if not other:
        return None
    place = Path(other).expanduser() / image.relative_to(folder).parent
    found = next((file for suffix in sorted(SUFFIXES) if (file := place / f"{image.stem}{suffix}").is_file()), None)
    if found is None:
        raise DataError(f"{image} has no counterpart for dataset.{option}: put {image.stem}.png into {place}")
    return found
