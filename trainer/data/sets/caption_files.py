"""Where the captions of an image come from: files beside it, its name, its folder, a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config.dataset import DatasetConfig
from ...errors import DataError
from .tables import CAPTION_FIELDS, texts_of

SIDECARS = (".txt", ".caption")


def sidecar(image: Path) -> Path | None:
    """The caption file beside an image, if there is one."""
    return next((file for suffix in SIDECARS if (file := image.with_suffix(suffix)).is_file()), None)


def read_text(file: Path) -> str:
    """Raises DataError if it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def concept_of(folder: str) -> tuple[int, str] | None:
    """(N, concept) of a folder named as kohya's are, "10_mycat"; None for any other."""
    number, underscore, rest = folder.partition("_")
    if not underscore or not number.isdecimal() or not number.isascii():
        return None
    return int(number[:9]), rest


def _from_json(image: Path, field: str) -> list[str]:
    file = image.with_suffix(".json")
    if not file.is_file():
        return []
    try:
        data: Any = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if isinstance(data, str | list):
        data = {field or CAPTION_FIELDS[0]: data}
    if not isinstance(data, Mapping):
        raise DataError(f"{file} holds {data!r}: write a text, a list of texts, or {{'caption': …}}")
    return texts_of(data, field, str(file))


def _words(name: str) -> str:
    return name.replace("_", " ").strip()


def _from_folder(image: Path) -> str:
    """The folder's name, without kohya's leading number of repeats ("10_mycat" is "mycat")."""
    concept = concept_of(image.parent.name)
    return _words(concept[1] if concept else image.parent.name)


def read_captions(image: Path, kind: str, config: DatasetConfig, listed: list[str], fallback: str) -> tuple[str, ...]:
    """The captions of an image, as they were written; `listed` are those of the table.

    Raises DataError if there is none, saying what to do.
    """
    if kind == "sidecar":
        file = sidecar(image)
        found = [read_text(file)] if file else []
    elif kind == "json":
        found = _from_json(image, config.caption_field)
    else:
        found = {
            "metadata": listed,
            "filename": [_words(image.stem)],
            "folder": [_from_folder(image)],
            "fixed": [],
        }[kind]
    texts = [text for one in found for text in _lines(one, config.caption_lines)] or _lines(
        fallback, config.caption_lines
    )
    if not texts:
        raise DataError(f"{image} has no caption: {_remedy(image, kind)}")
    return tuple(texts)


def _lines(text: str, lines: str) -> list[str]:
    if lines == "all":
        return [text.strip()] if text.strip() else []
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return found[:1] if lines == "first" else found


def _remedy(image: Path, kind: str) -> str:
    return {
        "sidecar": f"write {image.with_suffix('.txt').name} beside it, or set dataset.caption for images without one",
        "json": f"write {image.with_suffix('.json').name} beside it, or set dataset.caption for images without one",
        "metadata": "add a line for it to the table, or set dataset.caption for images without one",
        "filename": "give it a name that describes it, or set dataset.captions to another source",
        "folder": "put it in a folder named after what it shows, or set dataset.captions to another source",
        "fixed": "set dataset.caption",
    }[kind]
