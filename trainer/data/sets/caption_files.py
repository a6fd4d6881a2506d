"""Reading the captions of an image: from text or JSON files next to it, its file name, its folder's name, or a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...config.dataset import DatasetConfig
from ...errors import DataError
from .file_names import says_nothing
from .folders import Listings, rest_of_name
from .tables import CAPTION_FIELDS, decoded, texts_of

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters without a width, which editors and web pages leave behind. A text of nothing else is empty."""
OTHER_EXTENSIONS = (".txt", ".caption", ".tags", ".tag", ".text", ".prompt", ".cap", ".captions", ".wd14")
"""Extensions of caption files that some trainer or tagger writes."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions of an image, as they were written, and where they come from."""

    texts: tuple[str, ...]
    source: str
    """The source in the words of the report, such as "caption files (.txt)"."""
    file: Path | None = None
    """The file next to the image that was read."""


class NamelessError(DataError):
    """The caption of an image would be a file name that says nothing, such as IMG_2041."""


def sidecar(image: Path, suffixes: tuple[str, ...], listings: Listings) -> Path | None:
    """The caption file next to an image, or None. The case of its extension does not matter."""
    return next((file for suffix in suffixes if (file := listings.find(image.parent, image.stem, suffix))), None)


def read_text(file: Path) -> str:
    """The stripped content of a text file in UTF-8, or in UTF-16 or UTF-32 that begins with its mark. Raises DataError if it cannot be
    read or is neither."""
    try:
        return decoded(file.read_bytes()).strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def concept_of(folder: str) -> tuple[int, str] | None:
    """Returns (N, concept) of a folder with a name such as kohya's "10_mycat"; None for other names."""
    number, underscore, rest = folder.partition("_")
    if not underscore or not number.isdecimal() or not number.isascii():
        return None
    return int(number[:9]), rest


def _from_json(file: Path, field: str) -> list[str]:
    try:
        data: object = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if isinstance(data, str | list | int | float):
        data = {field or CAPTION_FIELDS[0]: data}
    if not isinstance(data, Mapping):
        raise DataError(f"{file} holds {data!r}: write a text, a list of texts, or {{'caption': …}}")
    return texts_of(data, field, str(file))


def _words(name: str) -> str:
    """A file or folder name as text."""
    return name.replace("_", " ").strip()


def _from_folder(image: Path) -> str:
    """The folder's name as text, without kohya's leading number of repeats ("10_mycat" is "mycat")."""
    concept = concept_of(image.parent.name)
    return _words(concept[1] if concept else image.parent.name)


def read_captions(
    image: Path,
    kind: str,
    config: DatasetConfig,
    listed: tuple[Path, list[str]] | None,
    fallback: str,
    listings: Listings,
) -> Captions:
    """The captions of an image, as they were written, and their source.

    `kind` is the source (`dataset.captions`, never "auto"), `listed` is the table that names the image with its captions for it, and
    `fallback` is used where the source has none. Raises DataError with the remedy if there is no caption at all.
    """
    found = _found(image, kind, config, listed, listings)
    texts = [text for caption in found.texts for text in _lines(caption, config.caption_lines)]
    for text in texts:
        _check_characters(text, found.file or image)
    if texts:
        return Captions(texts=tuple(texts), source=found.source, file=found.file)
    instead = _lines(fallback, config.caption_lines)
    if instead:
        source = "folder names" if not config.caption else "dataset.caption"
        return Captions(texts=tuple(instead), source=source, file=found.file)
    is_empty = found.file is not None or (kind == "metadata" and listed is not None)
    if is_empty and config.empty_captions:
        return Captions(texts=("",), source="empty captions (empty_captions = true)", file=found.file)
    if kind == "filename" and config.captions == "auto" and says_nothing(image):
        if config.trigger.strip() or config.prefix.strip():
            return Captions(texts=("",), source="the trigger or prefix alone, because their names say nothing")
        raise NamelessError(str(image))
    if is_empty:
        raise DataError(
            f"{found.file or image} {'is empty' if found.file else 'has an empty caption in the table'}: write a caption, set dataset.caption "
            "for images without one, or dataset.empty_captions = true to train it with the empty prompt"
        )
    raise DataError(f"{image} has no caption: {_remedy(image, kind, config, listings)}")


def _check_characters(text: str, where: Path) -> None:
    """Raise DataError for a text with halves of characters, which no text encoder takes: of names that are not UTF-8, or of JSON."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the caption {text[:80]!r} has no valid character at place {error.start + 1}: write it again in UTF-8, or rename the file"
        ) from error


def _found(
    image: Path, kind: str, config: DatasetConfig, listed: tuple[Path, list[str]] | None, listings: Listings
) -> Captions:
    """What a source has for an image, unchecked: its texts may be empty."""
    if kind == "sidecar":
        file = sidecar(image, config.caption_suffixes, listings)
        texts = (read_text(file),) if file else ()
        source = f"caption files ({rest_of_name(file, image.stem)})" if file else ""
        return Captions(texts=texts, source=source, file=file)
    if kind == "json":
        file = listings.find(image.parent, image.stem, ".json")
        return Captions(
            texts=tuple(_from_json(file, config.caption_field)) if file else (), source="JSON files", file=file
        )
    if kind == "metadata":
        return Captions(texts=tuple(listed[1]) if listed else (), source=listed[0].name if listed else "")
    if kind == "filename":
        useful = config.captions != "auto" or not says_nothing(image)
        return Captions(texts=(_words(image.stem),) if useful else (), source="file names")
    return Captions(texts=(_from_folder(image),) if kind == "folder" else (), source="folder names")


def _lines(text: str, lines: str) -> list[str]:
    """The captions in a text, by `dataset.lines`: the whole text, its first line, or each line."""
    if lines == "all":
        return [text.strip()] if _is_visible(text) else []
    stripped = [line.strip() for line in text.splitlines() if _is_visible(line)]
    return stripped[:1] if lines == "first" else stripped


def _is_visible(text: str) -> bool:
    return any(not letter.isspace() and letter not in INVISIBLE for letter in text)


def _other_name(image: Path, listings: Listings) -> str:
    """What reads a text next to an image that is called by another name than a caption file's; "" without one."""
    for extension in OTHER_EXTENSIONS:
        for suffix in (image.suffix + extension, extension):
            if listings.find(image.parent, image.stem, suffix):
                return f"{image.stem}{suffix} is there: set dataset.caption_extension = {suffix!r}; or "
        if other := listings.alike(image.parent, image.stem + extension):
            return f"{other.name} is there: rename it to {image.stem}{extension}; or "
    return ""


def _remedy(image: Path, kind: str, config: DatasetConfig, listings: Listings) -> str:
    if kind == "sidecar" and (other := _other_name(image, listings)):
        return f"{other}write {image.stem}{config.caption_suffixes[0]}"
    return {
        "sidecar": f"write {image.stem}{config.caption_suffixes[0]} next to it, or set dataset.caption for images without one",
        "json": f"write {image.stem}.json next to it, or set dataset.caption for images without one",
        "metadata": "add a line for it to the table, or set dataset.caption for images without one",
        "filename": "give it a name that describes it, or set dataset.captions to another source",
        "folder": "put it in a folder whose name describes it, or set dataset.captions to another source",
        "fixed": "set dataset.caption",
    }[kind]
