"""Finding the images of a set: a folder becomes a list of image files with captions. Nothing is decoded here."""

import re
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from ...config.dataset import MAX_REPEATS, DatasetConfig
from ...errors import DataError, problem_list, some
from ...types import CaptionForms
from ..images.load import image_suffixes
from .caption_files import NamelessError, concept_of, read_captions, sidecar
from .captions import plain
from .folders import Listings, Walk, walk
from .leftovers import machine_made, other_files, unread_folders, unread_images, unread_texts
from .tables import Table, find_table, listed_image, read_table


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
    def twins(self) -> tuple[Path, ...]:
        """Its mask, where that is a file of its own, and its reference images."""
        return (*((self.mask,) if self.mask and self.mask != self.path else ()), *self.references)

    @property
    def caption(self) -> str:
        """The first caption in its plain form."""
        return plain(self.forms)[0]


@dataclass(frozen=True, kw_only=True)
class ScannedFolder:
    """The images of one set, sorted by path."""

    images: list[ImageFile]
    notes: list[str]
    """What the user should know and may have to mend, for instance files in the folder that are not used."""
    about: list[str]
    """What is as it should be and worth knowing: where captions come from, which folders of tools were left out."""
    asked_empty: frozenset[Path]
    """Images that are to be trained with the empty prompt (`dataset.empty_captions`)."""


def folders_of(sets: Iterable[DatasetConfig]) -> frozenset[Path]:
    """Every folder that some set reads: of images, of masks, of reference images."""
    named = [name for one in sets for name in (one.folder, one.masks, *one.reference_folders)]
    return frozenset(Path(name).expanduser() for name in named if name and name != "alpha")


def scan(config: DatasetConfig, elsewhere: Set[Path] = frozenset()) -> ScannedFolder:
    """The images of one set, with notes about them. `elsewhere` are folders that other sets read, which are then not named as unread.

    Raises DataError that names every problem at once.
    """
    base = Path(config.folder).expanduser()
    if not base.is_dir():
        raise DataError(f"dataset.folder: {base} is not a folder{_hub_remedy(config.folder)}")
    return _Scan(base, config, (elsewhere | folders_of([config])) - {base}).result()


class _Scan:
    """One scan of a set: what was found so far."""

    def __init__(self, base: Path, config: DatasetConfig, elsewhere: Set[Path]) -> None:
        self._base, self._config, self._elsewhere = base, config, elsewhere
        self._listings = Listings()
        self._tables = _Tables(base, config, self._listings)
        self._problems: list[str] = []
        self._nameless: list[Path] = []
        self._empty: list[str] = []
        """What is wrong with folders that hold no images."""
        self._images: list[ImageFile] = []
        self._notes: list[str] = []
        self._about: list[str] = []
        self._sources: dict[str, list[Path]] = defaultdict(list)

    def result(self) -> ScannedFolder:
        """Scan every folder of the set."""
        if self._config.only_listed:
            self._listed()
        else:
            for folder, repeats, concept in _folders(self._base, self._config, self._notes, self._about):
                self._folder(folder, repeats, concept)
        if self._nameless:
            self._problems.insert(0, _nameless(self._base, self._nameless, len(self._images)))
        if not self._images and not self._problems:
            self._problems += self._empty
        if self._problems:
            raise DataError(problem_list([*dict.fromkeys(self._problems), *self._tables.not_read()]))
        about = [*self._source_lines(), *self._about, *self._tables.about()]
        empty = [path for source, paths in self._sources.items() if source.startswith("empty") for path in paths]
        return ScannedFolder(
            images=self._images,
            notes=self._notes + self._empty + self._tables.notes(),
            about=about,
            asked_empty=frozenset(empty),
        )

    def _listed(self) -> None:
        """Take the images that the table names, in its order, without looking through the folder."""
        kind = "metadata" if self._config.captions == "auto" else self._config.captions
        table = self._tables.table_of(self._base / "any")
        for name, captions in table.captions.items():
            try:
                path = listed_image(name, self._base, table.path, self._listings)
            except DataError as error:
                self._problems.append(str(error))
                continue
            table.used.add(name)
            self._image(path, kind, self._config.repeats, "", (table.path, captions))

    def _folder(self, folder: Path, repeats: int, concept: str) -> None:
        """Scan one folder: its images with their captions, and what else lies there."""
        found = walk(folder, recursive=self._config.recursive)
        paths = [path for path in found.files if path.suffix.lower() in image_suffixes()]
        if not paths:
            self._empty.append(_nothing_found(folder, found, recursive=self._config.recursive))
            return
        kind = _kind(self._config, paths, self._tables, self._listings)
        used = {file for path in paths if (file := self._image(path, kind, repeats, concept))}
        self._notes += [f"{self._base}: {problem}" for problem in found.problems]
        self._notes += unread_images(found.files, self._base)
        self._notes += unread_folders(found, self._base, self._elsewhere)
        rest = (self._config, found.files, paths, used | self._tables.read(), self._base)
        self._about += machine_made(found, self._base) + other_files(*rest)
        texts = unread_texts(*rest)
        asked = self._config.captions != "auto" or bool(self._config.caption_extension)
        (self._about if asked else self._notes).extend(texts)

    def _image(
        self, path: Path, kind: str, repeats: int, concept: str, listed: tuple[Path, list[str]] | None = None
    ) -> Path | None:
        """Add an image, or what is wrong with it; `listed` is its table with its captions there, else they are looked up. Returns the
        caption file that belongs to it."""
        config, base = self._config, self._base
        try:
            if kind == "metadata" and listed is None:
                listed = self._tables.captions_of(path)
            captions = read_captions(path, kind, config, listed, config.caption or concept, self._listings)
            mask = path if config.masks == "alpha" else _twin(path, base, config.masks, "masks", self._listings)
            references = [_twin(path, base, name, "references", self._listings) for name in config.reference_folders]
        except NamelessError:
            self._nameless.append(path)
            return None
        except DataError as error:
            self._problems.append(str(error))
            if kind == "sidecar":
                self._tables.file_for(path)  # it may be where the caption is; see `not_read`
            return None
        self._sources[captions.source].append(path)
        paired = tuple(file for file in references if file)
        forms = _forms(config, captions.texts)
        self._images.append(ImageFile(path=path, forms=forms, mask=mask, references=paired, repeats=repeats))
        return captions.file

    def _source_lines(self) -> list[str]:
        """One line that says where captions come from, and a note where names that say nothing were replaced by the trigger."""
        parts = [f"{len(paths)} from {source}" for source, paths in self._sources.items()]
        names = self._sources.get("file names", [])
        example = f", such as {names[0].stem!r}" if names else ""
        for source, paths in self._sources.items():
            if source.startswith("the trigger"):
                self._notes.append(
                    f"{self._base}: the names of {len(paths)} images say nothing, so they are trained with {source.split(',')[0]}: "
                    f"{some([path.name for path in paths])}; set dataset.captions = 'filename' to train the names"
                )
        return [f"captions of {self._base}: {', '.join(parts)}{example}"]


def _nameless(base: Path, paths: list[Path], others: int) -> str:
    """The error message for captions that would be the names of cameras, hashes or counters."""
    return (
        f"{base}: {len(paths)} of {len(paths) + others} images have no caption, and names that say nothing, such as {paths[0].stem!r}: write "
        f"{paths[0].stem}.txt and so on, set dataset.trigger (it is then the caption) or dataset.caption, or dataset.captions = 'filename' to "
        "train the names as they are"
    )


def _folders(base: Path, config: DatasetConfig, notes: list[str], about: list[str]) -> list[tuple[Path, int, str]]:
    """(folder, repeats, concept) of each folder to read: the folder itself, or its N_concept sub-folders."""
    if config.layout == "plain":
        return [(base, config.repeats, "")]
    folders: list[tuple[Path, int, str]] = []
    others: list[str] = []
    found = walk(base, recursive=False)
    for folder in found.not_entered:
        concept = concept_of(folder.name)
        if concept is None or concept[0] < 1:
            others.append(folder.name)
        elif concept[0] * config.repeats > MAX_REPEATS:
            raise DataError(
                f"{folder}: {concept[0]} x dataset.repeats = {config.repeats} are more than {MAX_REPEATS:,} repeats; rename the folder"
            )
        else:
            folders.append((folder, concept[0] * config.repeats, concept[1].replace("_", " ").strip()))
    if not folders:
        raise DataError(
            f"{base} has no sub-folders named N_concept, such as 10_mycat: name the folder above them, or set dataset.layout = 'plain'"
        )
    others += [path.name for path in found.files if path.suffix.lower() in image_suffixes()]
    if others:
        notes.append(f"{base}: ignored because not in a folder named N_concept: {some(others)}")
    notes += found.problems
    about += machine_made(found, base)
    return folders


def _kind(config: DatasetConfig, paths: list[Path], tables: "_Tables", listings: Listings) -> str:
    """The source of captions of a folder: `dataset.captions`, with "auto" resolved by what the folder holds."""
    if config.captions != "auto":
        return config.captions
    suffixes = config.caption_suffixes
    if config.layout == "kohya" or any(sidecar(path, suffixes, listings) for path in paths):
        return "sidecar"
    return "metadata" if any(tables.file_for(path) for path in paths) else "filename"


class _Tables:
    """The caption tables of a set, each read once: the named one, or else the nearest metadata.* in or above an image's folder."""

    def __init__(self, base: Path, config: DatasetConfig, listings: Listings) -> None:
        self._base, self._config, self._listings = base, config, listings
        self._named = base / Path(config.metadata).expanduser() if config.metadata else None
        self._files: dict[Path, Path | None] = {}
        self._tables: dict[Path, Table] = {}
        self._broken: dict[Path, DataError] = {}
        """Tables that cannot be used, each read once whatever the number of its images."""

    def file_for(self, image: Path) -> Path | None:
        """The table for an image, or None."""
        if self._named is not None:
            return self._named
        folder = image.parent
        if folder not in self._files:
            inside = [folder, *folder.parents]
            upward = inside[: inside.index(self._base) + 1] if self._base in inside else [folder]
            self._files[folder] = next((file for above in upward if (file := find_table(above, self._listings))), None)
        return self._files[folder]

    def read(self) -> set[Path]:
        """The tables that were read."""
        return set(self._tables)

    def captions_of(self, image: Path) -> tuple[Path, list[str]] | None:
        """(the table, the captions that it has for an image), or None if it does not name the image. Raises DataError if there is no table, or if it cannot be used."""
        table = self.table_of(image)
        captions = table.of(image)
        return None if captions is None else (table.path, captions)

    def table_of(self, image: Path) -> Table:
        """The table for an image. Raises DataError if there is none, or if it cannot be used."""
        file = self.file_for(image)
        if file is None:
            raise DataError(
                f"{image}: no metadata.jsonl, .csv, .parquet or .json next to it: write one, or name it as dataset.metadata"
            )
        if file in self._broken:
            raise self._broken[file]
        if file not in self._tables:
            try:
                self._tables[file] = read_table(file, self._config.caption_field, self._config.file_field)
            except DataError as error:
                self._broken[file] = error
                raise
        return self._tables[file]

    def not_read(self) -> list[str]:
        """What may hold the captions that are missing: a table that is left aside because there are caption files."""
        if self._config.captions != "auto" or self._tables or self._broken:
            return []
        return [
            f"{file} is not read where there are caption files: dataset.captions = 'metadata' reads it"
            for file in dict.fromkeys(self._files.values())
            if file
        ]

    def about(self) -> list[str]:
        """One line for each table that names files more than once."""
        return [
            f"{table.path} has several rows for {len(table.twice)} files, whose captions are all trained: {some(table.twice)}"
            for table in self._tables.values()
            if table.twice
        ]

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


def _hub_remedy(folder: str) -> str:
    """How to fetch what may be a dataset of the Hugging Face hub; "" for what is none."""
    name = "/".join(Path(folder).parts[-2:])
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(folder).expanduser().parent.is_dir()
    return (
        f"; if it is a dataset of the Hugging Face hub: hf download {name} --repo-type dataset --local-dir {folder}"
        if is_id
        else ""
    )


def _nothing_found(folder: Path, found: Walk, *, recursive: bool) -> str:
    """The error message for a folder without images, with the most likely remedy."""
    kinds = ", ".join(sorted(image_suffixes()))
    others = sorted({path.suffix.lower() for path in found.files})
    message = f"{folder} holds no images ({kinds})"
    inner = [path.name for path in found.not_entered]
    if unread := unread_images(found.files, folder):
        message += f"; {unread[0].removeprefix(f'{folder}: ')}"
    elif others:
        message += f"; it holds {some([suffix or 'files without extension' for suffix in others])}: convert them"
    elif not recursive and any(concept_of(name) for name in inner):
        message += f"; its sub-folders are named as kohya's ({some(inner)}): set dataset.layout = 'kohya'"
    elif not recursive and inner:
        message += "; it has sub-folders: set dataset.recursive = true, or name one of them"
    elif found.problems:
        message += f"; {some(found.problems)}"
    elif hidden := machine_made(found, folder):
        message += f"; {hidden[-1].removeprefix(f'{folder}: ')}"
    return message


def _twin(image: Path, folder: Path, other: str, option: str, listings: Listings) -> Path | None:
    """The image of the same name in another folder; None if no folder is given. Raises DataError if it is missing."""
    if not other:
        return None
    twins = Path(other).expanduser() / image.relative_to(folder).parent
    suffixes = [image.suffix, *sorted(image_suffixes())]  # of a.jpg and a.png each has its own
    twin = next((file for suffix in suffixes if (file := listings.find(twins, image.stem, suffix))), None)
    if twin is None:
        raise DataError(f"{image} has no counterpart for dataset.{option}: put {image.stem}.png into {twins}")
    return twin
