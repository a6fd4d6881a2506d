"""Images and captions that lie inside of tables, as Hugging Face's `datasets` keeps them, written to a folder of files.

Read are parquet files and the Arrow files that `save_to_disk` writes; both by pyarrow. A column of images is a struct of `bytes` and
`path`, or bytes.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ..config.dataset import DataConfig, DatasetConfig
from ..config.toml import digest
from ..errors import ConfigError, DataError, some
from ..storage.atomic import whole_folder, write_bytes
from ..types import Progress
from .images.index import FileIndex
from .images.load import DAMAGE, image_suffixes
from .sets.dataset import Dataset, build_dataset
from .sets.folders import is_machine_made
from .sets.tables import CAPTION_FIELDS, texts_of

KINDS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif"}  # fmt: skip
"""{Pillow's name of a format: its suffix}."""
PART = re.compile(r"(.*)-\d+-of-\d+")
"""How `datasets` names the files of a split: train-00000-of-00005."""
ROWS = 32
"""Rows of a table that are in memory at a time."""
LONGEST = 80
"""Characters of a file name."""
TABLES = (".parquet", ".arrow")
FACTS = ".unpacked"
"""The file of an unpacked dataset that holds what became of its rows."""


@dataclass(frozen=True, kw_only=True)
class SetOfFiles:
    """A set of images in files, whatever it was before."""

    config: DatasetConfig
    about: tuple[str, ...] = ()
    """Lines for the report about a table that was unpacked."""
    notes: tuple[str, ...] = ()
    """Rows of the table that are not used."""


def is_table(folder: Path) -> bool:
    """Whether the folder of a set is a Hugging Face dataset: a table of images, or a folder with such tables and without images."""
    if folder.is_file():
        return folder.suffix.lower() in TABLES
    found = False
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_machine_made(name)]
        suffixes = {os.path.splitext(name)[1].lower() for name in names if name[0] != "."}  # noqa: PTH122 - thousands of them
        if suffixes & image_suffixes():
            return False
        found = found or bool(suffixes & set(TABLES))
    return found


def as_files(config: DatasetConfig, cache: Path, progress: Progress) -> SetOfFiles:
    """A set of a Hugging Face dataset as one of the images in it, which are written to the cache once; any other set as it is.

    `file_field` and `caption_field` name the columns of the images and captions. Of several splits it is "train".

    Raises ConfigError where a choice has to be made, DataError for what is no such table.
    """
    source = Path(config.folder).expanduser()
    if not is_table(source):
        return SetOfFiles(config=config)
    splits = _splits(source)
    split = "train" if len(splits) > 1 and "train" in splits else ""
    files = _files(source, split)
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    target = cache / "unpacked" / digest([state, config.file_field, config.caption_field])[:32]
    if not (target / FACTS).is_file():
        columns = {"image": config.file_field, "caption": config.caption_field}
        done = unpack(source, target, progress, split=split, **columns)
        write_bytes(target / FACTS, json.dumps([done.images, done.left_out]).encode())
    images, left_out = json.loads((target / FACTS).read_text(encoding="utf-8"))
    of = f"split {split} of {config.folder}" if split else config.folder
    return SetOfFiles(
        config=replace(
            config, folder=str(target), captions="metadata", file_field="", caption_field="", recursive=False
        ),
        about=(f"{of}: {images} images inside of tables, written to {target}",),
        notes=(f"{of}: {len(left_out)} rows are left out: {some(left_out, 3)}",) if left_out else (),
    )


def dataset_of(
    sets: Sequence[DatasetConfig], data: DataConfig, step: int, seed: int, index: FileIndex, progress: Progress
) -> Dataset:
    """`build_dataset`, with the Hugging Face datasets among the sets written to the cache first, beside the index."""
    made = [as_files(one, index.path.parent, progress) for one in sets]
    dataset = build_dataset([one.config for one in made], data, step, seed, index, progress)
    about = [line for one in made for line in one.about]
    notes = [line for one in made for line in one.notes]
    return replace(dataset, about=(*about, *dataset.about), notes=(*dataset.notes, *notes))


@dataclass(kw_only=True)
class Unpacked:
    """What came out of a table."""

    folder: Path
    images: int = 0
    left_out: list[str] = field(default_factory=list)
    """Rows without an image that can be read, or without a caption, each with the reason."""
    columns: tuple[str, str] = ("", "")
    """The columns of (images, captions)."""

    def text(self) -> str:
        """The report as plain text."""
        image, caption = self.columns
        lines = [f"{self.images} images of the column {image!r} in {self.folder}, captions of {caption!r} in its metadata.jsonl"]  # fmt: skip
        if self.left_out:
            lines.append(f"{len(self.left_out)} rows left out: {some(self.left_out, 3)}")
        return "\n".join(lines)


def unpack(
    source: Path, target: Path, progress: Progress, *, split: str = "", image: str = "", caption: str = ""
) -> Unpacked:
    """Write the images of a table, byte for byte, and a metadata.jsonl with their captions into a new folder, which is there whole or not
    at all. `image` and `caption` name columns; by default they are found.

    Raises ConfigError where a choice has to be made or the folder exists, DataError for what is no such table.
    """
    if target.exists():
        raise ConfigError(f"{target} exists: name a new folder")
    arrow, files = _pyarrow(source), _files(source, split)
    try:
        schema, total = _schema(arrow, files)
        done = Unpacked(folder=target, columns=(image or _image_column(arrow, schema, source), caption or _caption_column(arrow, schema, source)))  # fmt: skip
        for name in done.columns:
            if name not in schema.names:
                raise ConfigError(f"{source} has no column {name!r}, it has {', '.join(schema.names)}")
        with whole_folder(target) as folder:
            lines, used = [], set[str]()
            for number, row in enumerate(_rows(arrow, files, done.columns), 1):
                made = _write_row(row, number, folder, used, done)
                if made:
                    lines.append(json.dumps(made, ensure_ascii=False))
                progress(number, total)
            if not lines:
                raise DataError(f"{source}: no row has an image and a caption: {some(done.left_out, 3)}")
            write_bytes(folder / "metadata.jsonl", "\n".join([*lines, ""]).encode())
    except arrow.ArrowException as error:
        raise DataError(f"{source} cannot be read as a table: {str(error).splitlines()[0]}") from error
    done.images = len(lines)
    return done


def _pyarrow(source: Path) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{source}: reading tables of images needs pyarrow (pip install pyarrow)") from error
    return pyarrow


def _files(source: Path, split: str) -> list[Path]:
    """The files of one split. Raises ConfigError where there are several to choose from."""
    if source.is_file():
        return [source]
    splits = _splits(source)
    if split and split not in splits:
        raise ConfigError(f"--split {split!r}: {source} has {', '.join(splits)}")
    if not split and len(splits) > 1:
        raise ConfigError(f"{source} has several splits: choose one with --split, of {', '.join(splits)}")
    return splits[split or next(iter(splits))]


def _splits(source: Path) -> dict[str, list[Path]]:
    """{split: its files}. Raises DataError for a folder without tables."""
    if source.is_file():
        return {source.stem: [source]}
    if not source.is_dir():
        raise DataError(f"{source} does not exist")
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".parquet", ".arrow"))
    found = [path for path in found if not path.name.startswith("cache-")]  # what datasets' map() leaves behind
    if not found:
        raise DataError(
            f"{source} holds no .parquet and no .arrow files: name what save_to_disk wrote, or a dataset's download"
        )
    splits: dict[str, list[Path]] = {}
    for path in found:
        part = PART.fullmatch(path.stem)
        name = part[1] if part and part[1] != "data" else path.parent.name if part else path.stem
        splits.setdefault(name, []).append(path)
    return splits


def _schema(arrow: Any, files: list[Path]) -> tuple[Any, int]:
    """(the columns, the number of rows; 0 if it is not known before all are read)."""
    if files[0].suffix.lower() == ".parquet":
        opened = [arrow.parquet.ParquetFile(path) for path in files]
        return opened[0].schema_arrow, sum(one.metadata.num_rows for one in opened)
    with arrow.memory_map(str(files[0])) as stream:
        return arrow.ipc.open_stream(stream).schema, 0


def _rows(arrow: Any, files: list[Path], columns: tuple[str, str]) -> Iterator[Mapping[str, Any]]:
    for path in files:
        if path.suffix.lower() == ".parquet":
            for batch in arrow.parquet.ParquetFile(path).iter_batches(ROWS, columns=list(dict.fromkeys(columns))):
                yield from batch.to_pylist()
            continue
        with arrow.memory_map(str(path)) as stream:
            for batch in arrow.ipc.open_stream(stream):
                for start in range(0, batch.num_rows, ROWS):
                    yield from batch.slice(start, ROWS).select(list(dict.fromkeys(columns))).to_pylist()


def _is_image(arrow: Any, kind: Any) -> bool:
    binary = arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)
    return binary or (arrow.types.is_struct(kind) and "bytes" in {kind.field(i).name for i in range(kind.num_fields)})


def _image_column(arrow: Any, schema: Any, source: Path) -> str:
    found = [one.name for one in schema if _is_image(arrow, one.type)]
    if len(found) > 1 and "image" in found:
        return "image"
    if len(found) != 1:
        which = f"several columns of images, {', '.join(found)}" if found else f"no column of images, only {', '.join(schema.names)}"  # fmt: skip
        raise ConfigError(f"{source} has {which}: name the right one with --image-column")
    return str(found[0])


def _caption_column(arrow: Any, schema: Any, source: Path) -> str:
    texts = {one.name for one in schema if arrow.types.is_string(one.type) or arrow.types.is_large_string(one.type) or arrow.types.is_list(one.type)}  # fmt: skip
    found = next((name for name in CAPTION_FIELDS if name in texts), None)
    if found is None:
        raise ConfigError(
            f"{source} has no column {' or '.join(CAPTION_FIELDS)}, it has {', '.join(schema.names)}: name its captions with --caption-column"
        )
    return found


def _write_row(
    row: Mapping[str, Any], number: int, folder: Path, used: set[str], done: Unpacked
) -> dict[str, object] | None:
    """Write the image of a row; its line of the metadata, None if it is left out."""
    image, caption = done.columns
    value = row[image]
    content = value.get("bytes") if isinstance(value, Mapping) else value
    path = value.get("path") if isinstance(value, Mapping) else None
    if not content:
        named = f"only names a file, {path}" if path else "has no image"
        done.left_out.append(f"row {number} {named}")
        return None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            suffix = KINDS.get(opened.format or "", "")
    except DAMAGE:
        suffix = ""
    if not suffix:
        done.left_out.append(f"row {number} holds no image that can be read")
        return None
    texts = texts_of(row, caption, f"row {number}")
    if not texts:
        done.left_out.append(f"row {number} has no caption")
        return None
    name = _name(path, number, suffix, used)
    write_bytes(folder / name, content)
    return {"file_name": name, "text": texts if len(texts) > 1 else texts[0]}


def _name(path: object, number: int, suffix: str, used: set[str]) -> str:
    """A file name of its own: the one in the table where that is free, else with the row's number."""
    stem = re.sub(r"[^\w .()-]+", "_", re.split(r"[\\/]", path)[-1]) if isinstance(path, str) else ""
    stem = Path(stem).stem.strip(" .")[:LONGEST] or f"{number:06d}"
    if stem.casefold() in used:
        stem = f"{stem}-{number:06d}"
    used.add(stem.casefold())
    return stem + suffix
