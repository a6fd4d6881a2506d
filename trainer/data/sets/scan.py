"""Finding the images of a set: a folder becomes a list of image files with captions. Nothing is decoded here."""

from dataclasses import dataclass
from pathlib import Path

from ...config.dataset import DatasetConfig
from ...errors import DataError, problem_list, some
from ...types import CaptionForms
from ..images.load import SUFFIXES
from .caption_files import concept_of, read_captions, sidecar
from .captions import plain
from .tables import Table, find_table, read_table


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image file with its captions and the files that belong to it."""

    path: Path
    forms: CaptionForms
    mask: Path | None
    """The mask file. It is the image itself where its alpha channel is the mask."""
    references: tuple[Path, ...]
    """The reference images of an edit model."""
    repeats: int
    """How often the image is used per epoch."""

    @property
    def caption(self) -> str:
        """The first caption in its plain form."""
        return plain(self.forms)[0]


@dataclass(frozen=True, kw_only=True)
class ScannedFolder:
    """The images of one set, sorted by path."""

    images: list[ImageFile]
    notes: list[str]
    """What the user should know, for instance entries of a table without a file."""


def scan(config: DatasetConfig) -> ScannedFolder:
    """The images of one set, with notes about them. Raises DataError that names every problem at once."""
    base = Path(config.folder).expanduser()
    if not base.is_dir():
        raise DataError(f"dataset.folder: {base} is not a folder")
    tables = _Tables(base, config)
    problems: list[str] = []
    images: list[ImageFile] = []
    notes: list[str] = []
    for folder, repeats, concept in _folders(base, config, notes):
        paths = _image_paths(folder, recursive=config.recursive)
        kind = _kind(config, paths, tables)
        for path in paths:
            try:
                listed = tables.captions_of(path) if kind == "metadata" else []
                texts = read_captions(path, kind, config, listed, config.caption or concept)
                mask = path if config.masks == "alpha" else _twin(path, base, config.masks, "masks")
                references = [_twin(path, base, folder, "references") for folder in config.reference_folders]
            except DataError as error:
                problems.append(str(error))
                continue
            forms = _forms(config, texts)
            paired = tuple(file for file in references if file)
            images.append(ImageFile(path=path, forms=forms, mask=mask, references=paired, repeats=repeats))
    if problems:
        raise DataError(problem_list(problems))
    return ScannedFolder(images=images, notes=notes + tables.notes())


def _folders(base: Path, config: DatasetConfig, notes: list[str]) -> list[tuple[Path, int, str]]:
    """Returns (folder, repeats, concept) of each folder to read: the folder itself, or its N_concept sub-folders."""
    if config.layout == "plain":
        return [(base, config.repeats, "")]
    folders: list[tuple[Path, int, str]] = []
    others: list[str] = []
    for folder in sorted(path for path in base.iterdir() if path.is_dir() and path.name[0] != "."):
        concept = concept_of(folder.name)
        if concept is None or concept[0] < 1:
            others.append(folder.name)
        else:
            folders.append((folder, concept[0] * config.repeats, concept[1].replace("_", " ").strip()))
    if not folders:
        raise DataError(
            f"{base} has no sub-folders named N_concept, such as 10_mycat: name the folder above them, or set dataset.layout = 'plain'"
        )
    others += sorted(path.name for path in base.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if others:
        notes.append(f"{base}: ignored because not in a folder named N_concept: {some(others)}")
    return folders


def _image_paths(folder: Path, *, recursive: bool) -> list[Path]:
    # Sorting by parts gives the order in which paths compare, but is much faster.
    candidates = sorted(folder.rglob("*") if recursive else folder.iterdir(), key=lambda path: path.parts)
    paths = [path for path in candidates if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."]
    if not paths:
        raise DataError(_nothing_found(folder, candidates, recursive=recursive))
    return paths


def _kind(config: DatasetConfig, paths: list[Path], tables: "_Tables") -> str:
    """The source of captions of a folder: `dataset.captions`, with "auto" resolved by what the folder holds."""
    if config.captions != "auto":
        return config.captions
    if any(sidecar(path) for path in paths) or config.layout == "kohya":
        return "sidecar"
    return "metadata" if any(tables.file_for(path) for path in paths) else "filename"


class _Tables:
    """The caption tables of a set, each read once: the named one, or else the nearest metadata.* in or above an image's folder."""

    def __init__(self, base: Path, config: DatasetConfig) -> None:
        self._base, self._config = base, config
        self._named = base / Path(config.metadata).expanduser() if config.metadata else None
        self._files: dict[Path, Path | None] = {}
        self._tables: dict[Path, Table] = {}

    def file_for(self, image: Path) -> Path | None:
        """The table for an image, or None."""
        if self._named is not None:
            return self._named
        folder = image.parent
        if folder not in self._files:
            inside = [folder, *folder.parents]
            upward = inside[: inside.index(self._base) + 1] if self._base in inside else [folder]
            self._files[folder] = next((file for above in upward if (file := find_table(above))), None)
        return self._files[folder]

    def captions_of(self, image: Path) -> list[str]:
        """The captions that the table has for an image. Raises DataError if there is no table, or if it cannot be used."""
        file = self.file_for(image)
        if file is None:
            raise DataError(
                f"{image}: no metadata.jsonl, .csv, .parquet or .json next to it: write one, or name it as dataset.metadata"
            )
        if file not in self._tables:
            self._tables[file] = read_table(file, self._config.caption_field, self._config.file_field)
        return self._tables[file].of(image)

    def notes(self) -> list[str]:
        """One line for each table with entries that match no image."""
        return [
            f"{table.path} names {len(names)} files that are not among the images: {some(names)}"
            for table in self._tables.values()
            if (names := table.unused())
        ]


def _forms(config: DatasetConfig, texts: tuple[str, ...]) -> CaptionForms:
    """The captions of an image, with the set's options of caption augmentation."""
    before = " ".join(part for part in (config.trigger.strip(), config.prefix.strip()) if part)
    return CaptionForms(
        texts=texts,
        before=before,
        after=config.suffix.strip(),
        wildcards=config.wildcards,
        shuffle=config.shuffle_tags,
        keep_tokens=config.keep_tokens,
        keep_separator=config.keep_separator,
        tag_separator=config.tag_separator,
        secondary_separator=config.secondary_separator,
        tag_dropout=config.tag_dropout,
    )


def _nothing_found(folder: Path, candidates: list[Path], *, recursive: bool) -> str:
    """The error message for a folder without images, with the most likely remedy."""
    kinds = ", ".join(sorted(SUFFIXES))
    others = sorted({path.suffix.lower() for path in candidates if path.is_file()})
    message = f"{folder} holds no images ({kinds})"
    inner = [path.name for path in candidates if path.is_dir()]
    if others:
        message += f"; it holds {', '.join(suffix or 'files without extension' for suffix in others)}: convert them"
    elif not recursive and any(concept_of(name) for name in inner):
        message += f"; its sub-folders are named as kohya's ({some(inner)}): set dataset.layout = 'kohya'"
    elif not recursive and inner:
        message += "; it has sub-folders: set dataset.recursive = true, or name one of them"
    return message


def _twin(image: Path, folder: Path, other: str, option: str) -> Path | None:
    """The image of the same name in another folder; None if no folder is given. Raises DataError if it is missing."""
    if not other:
        return None
    twins = Path(other).expanduser() / image.relative_to(folder).parent
    twin = next((file for suffix in sorted(SUFFIXES) if (file := twins / f"{image.stem}{suffix}").is_file()), None)
    if twin is None:
        raise DataError(f"{image} has no counterpart for dataset.{option}: put {image.stem}.png into {twins}")
    return twin
