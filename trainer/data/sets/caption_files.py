"""Reading the captions of an image: from text or JSON files next to it, its file name, its folder's name, or a table."""

import json
from collections.abc import Mapping
from pathlib import Path

from ...config.dataset import DatasetConfig
from ...errors import DataError
from .tables import CAPTION_FIELDS, texts_of

SIDECARS = (".txt", ".caption")


def sidecar(image: Path) -> Path | None:
    """The caption file next to an image, or None."""
    return next((file for suffix in SIDECARS if (file := image.with_suffix(suffix)).is_file()), None)


def read_text(file: Path) -> str:
    """The stripped content of a text file. Raises DataError if it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").strip()
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


def _from_json(image: Path, field: str) -> list[str]:
    file = image.with_suffix(".json")
    if not file.is_file():
        return []
    try:
        data: object = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if isinstance(data, str | list):
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


def read_captions(image: Path, kind: str, config: DatasetConfig, listed: list[str], fallback: str) -> tuple[str, ...]:
    """The captions of an image, as they were written.

    `kind` is the source (`dataset.captions`, never "auto"), `listed` are the captions that the table has for the image, and
    `fallback` is used where the source has none. Raises DataError with the remedy if there is no caption at all.
    """
    if kind == "sidecar":
        file = sidecar(image)
        captions = [read_text(file)] if file else []
    elif kind == "json":
        captions = _from_json(image, config.caption_field)
    else:
        captions = {
            "metadata": listed,
            "filename": [_words(image.stem)],
            "folder": [_from_folder(image)],
            "fixed": [],
        }[kind]
    texts = [text for caption in captions for text in _lines(caption, config.caption_lines)] or _lines(
        fallback, config.caption_lines
    )
    if not texts:
        raise DataError(f"{image} has no caption: {_remedy(image, kind)}")
    return tuple(texts)


def _lines(text: str, lines: str) -> list[str]:
    """The captions in a text, by `dataset.lines`: the whole text, its first line, or each line."""
    if lines == "all":
        return [text.strip()] if text.strip() else []
    stripped = [line.strip() for line in text.splitlines() if line.strip()]
    return stripped[:1] if lines == "first" else stripped


def _remedy(image: Path, kind: str) -> str:
    return {
        "sidecar": f"write {image.with_suffix('.txt').name} next to it, or set dataset.caption for images without one",
        "json": f"write {image.with_suffix('.json').name} next to it, or set dataset.caption for images without one",
        "metadata": "add a line for it to the table, or set dataset.caption for images without one",
        "filename": "give it a name that describes it, or set dataset.captions to another source",
        "folder": "put it in a folder whose name describes it, or set dataset.captions to another source",
        "fixed": "set dataset.caption",
    }[kind]
