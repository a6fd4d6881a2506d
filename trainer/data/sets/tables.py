"""Caption tables next to the images: metadata.jsonl, .csv, .tsv and .parquet in the layout of Hugging Face datasets, kohya's .json.

A table names files relative to its own folder. Columns: file_name (or file, image, path …) and text (or caption …).
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...errors import DataError
from ...types import Json
from ..images.load import image_suffixes
from .folders import Listings, same_suffix

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json", "metadata.tsv")
FILE_FIELDS = ("file_name", "filename", "file", "image", "image_path", "path")
CAPTION_FIELDS = ("text", "caption", "captions", "prompt", "tags", "description")
KNOWN_FIELDS = frozenset((*FILE_FIELDS, *CAPTION_FIELDS))
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address on the web or in a store begins."""
TableRow = Mapping[str, object]
"""The columns of one row."""
DELIMITERS = (",", ";", "\t")
"""What is between the columns of a csv file; the one that the header has most of, for spreadsheets write what their language asks for."""


def decoded(content: bytes) -> str:
    """A text file in UTF-8, or in UTF-16 or UTF-32 that begins with its mark, with plain line ends.

    Raises UnicodeDecodeError, also for NUL characters, which no text holds: they are another encoding or a damaged file.
    """
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8-sig")
    text = content.decode(encoding)
    if "\0" in text:
        raise UnicodeDecodeError(encoding, content, text.index("\0"), text.index("\0") + 1, "a NUL character")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass
class Table:
    """The captions of a table by file name as written, and which entries were used."""

    path: Path
    captions: dict[str, list[str]]
    used: set[str] = field(default_factory=set)
    twice: list[str] = field(default_factory=list)
    """The files that have several rows. The captions of all are theirs."""

    def of(self, image: Path) -> list[str] | None:
        """The captions of an image; [] if its caption is empty, None if the table does not name it.

        The case of the file's suffix does not matter, nor whether accents are letters of their own, as on macOS.
        """
        inner = _relative(image, self.path.parent)
        for name in (inner, str(image), _stem(inner), _stem(str(image)), image.name, image.stem):
            written = name if name in self.captions else self._written.get(same_suffix(name))
            if written is not None:
                self.used.add(written)
                return self.captions[written]
        return None

    @cached_property
    def _written(self) -> dict[str, str]:
        """{name with its suffix in small letters: name as written}."""
        return {same_suffix(name): name for name in self.captions}

    def unused(self) -> list[str]:
        """The file names in the table that matched no image."""
        return [name for name in self.captions if name not in self.used]


def find_table(folder: Path, listings: Listings) -> Path | None:
    """The first of the known table names that exists in a folder, in any case; None without one."""
    there = {name.casefold(): name for name in reversed(listings.names(folder))}
    return next((folder / there[name] for name in NAMES if name in there), None)


def listed_image(name: str, base: Path, table: Path, listings: Listings) -> Path:
    """The image file that a table names, below the set's folder `base`. Names start from that folder or from the table's.

    Raises DataError with the remedy for an address, a file that is not there, one of another kind and one outside of the folder.
    """
    if ADDRESS.match(name):
        raise DataError(
            f"{table}: {name} is an address, and nothing is downloaded here: fetch the images first, and name the files"
        )
    path = next((found for place in (base, table.parent) if (found := _found(place / name, listings))), None)
    if path is None:
        raise DataError(f"{table} names {name}, which is neither in {base} nor in {table.parent}")
    if path.suffix.lower() not in image_suffixes():
        raise DataError(f"{table} names {name}, which is no image")
    real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(base))
    if not real.is_relative_to(folder):
        raise DataError(f"{table} names {path}, outside of dataset.folder = {str(base)!r}: name a folder above both")
    return path if path.is_relative_to(base) and ".." not in path.parts else base / real.relative_to(folder)


def _found(path: Path, listings: Listings) -> Path | None:
    """The file of this path, with any suffix of images where none is written; None if there is none."""
    if path.is_file():
        return path
    suffixes = [path.suffix] if path.suffix.lower() in image_suffixes() else sorted(image_suffixes())
    stem = path.stem if len(suffixes) == 1 else path.name
    return next((found for one in suffixes if (found := listings.find(path.parent, stem, one))), None)


def read_table(path: Path, caption_field: str = "", file_field: str = "") -> Table:
    """Read a table by its extension. Raises DataError that names the file and the row for anything that cannot be used."""
    readers = {
        ".jsonl": _json_lines,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": _parquet_rows,
        ".json": _kohya_rows,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"dataset.metadata: {path} is not one of {', '.join(sorted(readers))}")
    captions: dict[str, list[str]] = {}
    twice: dict[str, None] = {}
    try:
        for number, row in enumerate(readers[path.suffix.lower()](path), 1):
            where = f"{path}, row {number}"
            name = _file_of(row, file_field, where)
            if name in captions:
                twice[name] = None
            captions.setdefault(name, []).extend(texts_of(row, caption_field, where))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    return Table(path=path, captions=captions, twice=list(twice))


def texts_of(row: TableRow, caption_field: str, where: str) -> list[str]:
    """The captions in a row: one text, several, or kohya's caption followed by its tags. Raises DataError if there is no caption
    column, or if its value is neither text nor a number."""
    row = _tidy(row, caption_field)
    fields = [caption_field] if caption_field else [name for name in CAPTION_FIELDS if row.get(name)][:1]
    if caption_field and caption_field not in row:
        raise DataError(f"{where} has no {caption_field!r} (dataset.caption_field); it has {_columns(row)}")
    if not fields:
        if not any(name in row for name in CAPTION_FIELDS):
            raise DataError(f"{where} has no caption, it has {_columns(row)}: name one as dataset.caption_field")
        return []
    value = _said(row[fields[0]])
    if isinstance(value, str):
        tags = _said(row.get("tags")) if fields == ["caption"] else None
        if isinstance(tags, str) and tags.strip():
            return [f"{value.strip()}, {tags.strip()}"]
        return [value] if value.strip() else []
    if isinstance(value, list):
        parts = [_said(part) for part in value]
        if all(isinstance(part, str) for part in parts):
            texts = [str(part) for part in parts]
            return [", ".join(texts)] if fields == ["tags"] else [text for text in texts if text.strip()]
    if value is None:
        return []
    raise DataError(f"{where}: {fields[0]} = {str(value)[:80]!r} is not text")


def _said(value: object) -> object:
    """A number as the text that was meant, "no number" of a column of numbers as nothing."""
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN
        return None
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _tidy(row: TableRow, asked: str) -> TableRow:
    """A row whose columns with a known name are called by it: "File_Name" and " text" are file_name and text."""
    tidy: dict[str, object] = {}
    for name, value in row.items():
        plain = str(name).strip()
        known = plain.casefold() in KNOWN_FIELDS and plain != asked
        tidy[plain.casefold() if known else plain] = value
    return tidy


def _columns(row: TableRow) -> str:
    return ", ".join(str(name) for name in row) or "nothing"


def _file_of(row: TableRow, file_field: str, where: str) -> str:
    row = _tidy(row, file_field)
    for name in [file_field] if file_field else FILE_FIELDS:
        value = _said(row.get(name))
        if isinstance(value, str) and value.strip():
            return value.strip().replace("\\", "/").removeprefix("./")
    wanted = f"{file_field} (dataset.file_field)" if file_field else "file_name"
    raise DataError(f"{where} does not name a file, it has {_columns(row)}: add {wanted}")


def _relative(image: Path, folder: Path) -> str:
    return image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)


def _stem(name: str) -> str:
    return str(Path(name).with_suffix("").as_posix())


def _json_lines(path: Path) -> Iterator[TableRow]:
    text = decoded(path.read_bytes())
    if text.lstrip().startswith("["):
        yield from _listed_rows(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _mapping(line, f"{path}, line {number}")


def _mapping(text: str, where: str) -> Json:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{where} holds {str(data)[:80]!r}: write {{…}}")
    return data


def _csv_rows(path: Path) -> Iterator[TableRow]:
    text = decoded(path.read_bytes())
    header = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="")
        _check_quotes(path, text, delimiter)
        _check_header(path, [name.strip() for name in reader.fieldnames or ()])
        for number, row in enumerate(reader, 1):
            if any(cell.strip() for cell in row.pop("", None) or ()):
                raise DataError(
                    f"{path}, row {number} has more cells than the header has columns: put texts with {delimiter!r} in quotes"
                )
            yield row
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from error


def _check_header(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice: give one of them another name")


def _check_quotes(path: Path, text: str, delimiter: str) -> None:
    """A quote that is not closed takes the rest of the table into its cell."""
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        if "end of data" in str(error):
            raise DataError(f"{path}: a quote is not closed, so the rest of the table is one cell: close it") from error


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading parquet needs pyarrow (pip install pyarrow), or save it as metadata.csv"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        nested = [f.name for f in file.schema_arrow if f.name in FILE_FIELDS and pyarrow.types.is_nested(f.type)]
        if nested:
            raise DataError(
                f"{path}: the images are inside the table, in {nested[0]}: lora-loom unpack {path} FOLDER writes them and their captions to files"
            )
        yield from file.read(
            columns=[f.name for f in file.schema_arrow if not pyarrow.types.is_binary(f.type)]
        ).to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path} is not valid parquet: {error}") from error


def _kohya_rows(path: Path) -> Iterator[TableRow]:
    """Rows of {image: {"caption": …, "tags": …}}, or of a list of rows as metadata.jsonl has them."""
    text = decoded(path.read_bytes())
    if text.lstrip().startswith("["):
        yield from _listed_rows(text, path)
        return
    data = _mapping(text, str(path))
    for name, row in data.items():
        if not isinstance(row, dict):
            raise DataError(f"{path}: {name!r} holds {str(row)[:80]!r}: write {{'caption': …}}")
        yield {**row, "file_name": name}


def _listed_rows(text: str, path: Path) -> Iterator[TableRow]:
    try:
        rows: list[object] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} holds {str(row)[:80]!r}: write {{…}}")
        yield row
