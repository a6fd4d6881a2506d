"""The work of the dataset nodes: they make datasets of folders, files and images from the graph, and fill the cache."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ....trainer.config.aliases import no_note
from ....trainer.config.run import DataConfig, DatasetConfig, MemoryConfig
from ....trainer.config.toml import digest, parse, to_dict
from ....trainer.data.cache.fill import fill
from ....trainer.data.cache.keys import find_work
from ....trainer.data.cache.store import Cache
from ....trainer.data.contact_sheet import Thumbnail, contact_sheet, thumbnails
from ....trainer.data.images.index import FileIndex
from ....trainer.data.images.load import file_digest
from ....trainer.data.report import make_report, refuse_warnings
from ....trainer.data.sets.dataset import Dataset, trigger_words
from ....trainer.data.sets.folders import walk
from ....trainer.data.sets.scan import folders_of, scan
from ....trainer.data.unpack import SetOfFiles, as_files, dataset_of, is_table
from ....trainer.errors import ConfigError, DataError, LoomError
from ....trainer.storage.atomic import write_bytes, write_json
from ....trainer.types import Example, Record, reference_name
from ...sockets.names import ALONE, AUTO
from ...sockets.values import CacheValue, DatasetValue, example_from_json, example_to_json
from ...words import in_the_graph
from ..backend.encoder_check import check_item, check_vae
from ..comfy_types import BaseModel, Clip, Vae
from ..importing import read_datasets
from ..paths import by_folders_of_comfyui, cache_folder, preview, resolve_file, resolve_folder
from ..progress import Bar
from .edit_prompts import chosen_reading, text_pixels
from .encoder_bytes import encoding_bytes
from .encoders import encoder_identity, host_encoders
from .images import from_image, from_mask, to_image, to_png

LISTS: dict[str, type[int] | type[float]] = {"resolutions": int, "megapixels": float, "aspects": float}
"""{option of a set that is written as a text of numbers: their type}."""


def folder_state(options: Record) -> str:
    """A digest of names, sizes and times of every file of a dataset, or the error message."""
    try:
        return digest(_set_state(_allowed_paths(options)))
    except (LoomError, OSError) as error:
        return str(error)


def file_state(name: str) -> str:
    """A digest like `folder_state` for all datasets of a file, and of the file."""
    try:
        file = resolve_file(name, "path")
        sets = read_datasets(file, _judged).sets
        return digest([file_digest(file), [_set_state(to_dict(one)) for one in sets]])
    except (LoomError, OSError) as error:
        return str(error)


def _set_state(options: Record) -> list[Record]:
    deep = bool(options.get("recursive")) or options.get("layout") == "kohya"
    state = _files_state(Path(options["folder"]), recursive=deep)
    masks = [] if options.get("masks") == "alpha" else [options.get("masks")]
    for folder in [*masks, *(options.get("references") or ())]:
        if folder:
            state += _files_state(Path(folder), recursive=deep)
    if options.get("metadata"):
        state.append({"metadata": _file_state(Path(options["metadata"]))})
    return state


def _files_state(folder: Path, *, recursive: bool) -> list[Record]:
    return [{str(p.relative_to(folder)): _file_state(p)} for p in walk(folder, recursive=recursive).files]


def _file_state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _allowed_paths(options: Record) -> Record:
    """The options with full paths. Raises ConfigError for a path that may not be used."""
    folder = resolve_folder(options["folder"], "folder")
    checked = {**options, "folder": str(folder)}
    if checked.get("masks") and checked["masks"] != "alpha":
        checked["masks"] = str(resolve_folder(checked["masks"], "masks"))
    names = str(checked.get("references") or "").split(";")
    folders = [str(resolve_folder(name.strip(), "references")) for name in names if name.strip()]
    checked["references"] = folders or ""
    if checked.get("metadata"):
        inner = folder / checked["metadata"]
        checked["metadata"] = str(resolve_file(str(inner if inner.is_file() else checked["metadata"]), "metadata"))
    return checked


def add_folder(previous: DatasetValue | None, options: Record) -> tuple[DatasetValue, Tensor, str]:
    """Add a folder: (dataset, contact sheet, report). Raises ConfigError or DataError naming every problem."""
    checked = _allowed_paths(options)
    for name, kind in LISTS.items():
        checked[name] = number_list(str(checked.get(name) or ""), kind, name)
    return _added(previous, [parse(_with_range(checked), DatasetConfig, no_note)])


def _with_range(options: Record) -> Record:
    """The options with `timestep_range` as two numbers; left out where it is empty. Raises ConfigError."""
    limits = number_list(str(options.get("timestep_range") or ""), float, "timestep_range")
    if len(limits) not in (0, 2):
        raise ConfigError(f"timestep_range = {options['timestep_range']!r}: write two numbers, such as 0.0, 0.5")
    rest = {name: value for name, value in options.items() if name != "timestep_range"}
    return {**rest, **({"timestep_range": limits} if limits else {})}


def add_file(previous: DatasetValue | None, name: str) -> tuple[DatasetValue, Tensor, str]:
    """Add the datasets of a file: (dataset, contact sheet, report). Paths in it are checked as those of a workflow are.

    Raises ConfigError or DataError naming every problem.
    """
    listed = read_datasets(resolve_file(name, "path"), _judged)
    return _added(previous, listed.sets, listed.notes)


def _judged(path: str, option: str) -> str:
    return str(resolve_file(path, option) if option == "metadata" else resolve_folder(path, option))


def number_list(text: str, kind: type[int] | type[float], name: str) -> list[float]:
    """The numbers of a text such as "512, 768". Raises ConfigError."""
    try:
        return [kind(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{name} = {text!r}: write numbers with commas between them, such as 512, 768") from error


def _added(
    previous: DatasetValue | None, configs: Sequence[DatasetConfig], notes: Sequence[str] = ()
) -> tuple[DatasetValue, Tensor, str]:
    earlier = previous or DatasetValue(sets=())
    value = DatasetValue(sets=(*earlier.sets, *configs), notes=(*earlier.notes, *notes))
    read = folders_of(value.sets)
    made = [_in_files(one) for one in value.sets]
    found = [(one, scan(one.config, read)) for one in made]
    images = [image for _, one in found for image in one.images]
    sheet = contact_sheet(
        [Thumbnail(path=image.path, caption=image.caption) for image in images], f"{len(images)} images"
    )
    lines = [f"{len(images)} images", *value.notes]
    for config, (table, one) in zip(value.sets, found, strict=True):
        repeats = sorted({image.repeats for image in one.images})
        seen = f"{repeats[0]} x" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]} x"
        lines.append(f"{config.folder}: {len(one.images)} images, {config.role}, each seen {seen} per epoch")
        lines += [*table.about, *one.about, *table.notes, *one.notes]
    return value, to_image(sheet), in_the_graph(by_folders_of_comfyui("\n".join(lines)))


def _in_files(config: DatasetConfig) -> SetOfFiles:
    """A set with its images in files: those of a Hugging Face dataset are written to the cache once."""
    is_plain = not is_table(Path(config.folder))
    return SetOfFiles(config=config) if is_plain else as_files(config, cache_folder(), Bar().update)


def add_images(
    previous: DatasetValue | None,
    images: Tensor,
    captions: str,
    masks: Tensor | None,
    options: Record,
    references: Sequence[Tensor | None] = (),
) -> tuple[DatasetValue, Tensor, str]:
    """Write the images to a folder of the cache that is named by their content, and add it: (dataset, contact sheet, report).

    Raises DataError if the numbers of captions, masks or references do not fit.
    """
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if len(lines) not in (1, len(images)):
        raise DataError(
            f"{len(lines)} captions for {len(images)} images: write one line per image, or a single one for all"
        )
    if masks is not None and len(masks) not in (1, len(images)):
        raise DataError(f"{len(masks)} masks for {len(images)} images: connect one per image, or a single one for all")
    connected = [batch for batch in references if batch is not None]
    for batch in connected:
        if len(batch) not in (1, len(images)):
            raise DataError(
                f"{len(batch)} reference images for {len(images)} images: connect one per image, or a single one for all"
            )
    contents = [to_png(from_image(image)) for image in images]
    reference_contents = [[to_png(from_image(image)) for image in batch] for batch in connected]
    mask_contents = [to_png(from_mask(mask)) for mask in masks] if masks is not None else []
    name = digest(
        [
            [hashlib.sha256(c).hexdigest() for c in contents],
            lines,
            [hashlib.sha256(c).hexdigest() for c in mask_contents],
            *([hashlib.sha256(c).hexdigest() for c in batch] for batch in reference_contents),
        ]
    )[:32]
    folder = cache_folder() / "images" / name
    reference_folders = [folder / reference_name(number) for number in range(len(connected))]
    for index, content in enumerate(contents):
        write_bytes(folder / f"{index:05d}.png", content)
        write_bytes(folder / f"{index:05d}.txt", lines[index if len(lines) > 1 else 0].encode())
        if mask_contents:
            write_bytes(folder / "masks" / f"{index:05d}.png", mask_contents[index if len(mask_contents) > 1 else 0])
        for place, images_here in zip(reference_folders, reference_contents, strict=True):
            write_bytes(place / f"{index:05d}.png", images_here[index if len(images_here) > 1 else 0])
    config = {
        **options,
        "folder": str(folder),
        "captions": "sidecar",
        "masks": str(folder / "masks") if mask_contents else "",
        "references": [str(place) for place in reference_folders] or "",
    }
    return _added(previous, [parse(_with_range(config), DatasetConfig, no_note)])


def fill_cache(
    value: DatasetValue,
    vae: Vae,
    clip: Clip,
    data: DataConfig,
    seed: int,
    memory: MemoryConfig,
    edit_prompts: str = AUTO,
    models: Sequence[BaseModel] = (),
) -> tuple[CacheValue, str, Tensor, dict[str, str]]:
    """Encode what is missing; returns the record of the cache, a report, a contact sheet with the crops, and its file for the frontend.

    `models` are those that will be trained on it: the VAE and the CLIP must belong to them. Raises LoomError before anything is encoded.
    """
    for model in models:
        check_vae(model, vae)
    if any(config.varies and not config.caption_variants for config in value.sets):
        raise ConfigError("caption_variants = 0: LoomCache encodes captions in advance; use 2 or more (16 is usual)")
    folder = cache_folder()
    reading = chosen_reading(edit_prompts, clip, max(len(config.reference_folders) for config in value.sets))
    encoders = host_encoders(vae, clip, reading)
    if memory.vae_tiling:
        encoders.image.use_tiles()
    factor = encoders.image.factor
    step = data.bucket_step or 8 * factor
    bar = Bar()
    dataset = dataset_of(value.sets, data, step, seed, FileIndex(folder / "files.json"), bar.update)
    report = make_report(dataset)
    if data.strict:
        refuse_warnings(report)
    identity = encoder_identity(vae, clip, tiled=memory.vae_tiling, text_pixels=text_pixels(reading))
    cache = Cache(folder)
    work = find_work(cache, dataset, identity)
    if models and work.prompts:
        item = encoders.text.encode([next(iter(work.prompts.values())).text])[0]
        for model in models:
            check_item(model, item)
    needed = encoding_bytes(vae, clip, work, memory.vae_batch_size, tiled=memory.vae_tiling)
    done = fill(cache, work, encoders, memory.vae_batch_size, lambda what, count, total: bar.update(count, total))
    listing = write_listing(folder, dataset)
    record = CacheValue(
        folder=str(folder),
        listing=listing,
        digest=dataset.digest,
        vae=identity.vae,
        text=identity.text,
        text_pixels=identity.text_pixels,
        factor=factor,
        resolution=data.resolution,
        trigger=trigger_words(value.sets),
        encoding_bytes=needed,
    )
    sheet = contact_sheet(thumbnails(dataset, report), f"{len(dataset.examples)} images as they are trained")
    shown_sheet = preview(f"crops-{digest([dataset.digest, data.resolution, value.to_json()])[:16]}.png", to_png(sheet))
    read = (
        "" if reading == ALONE else f"\ncaptions are encoded with the reference images, as for {reading} (edit_prompts)"
    )
    text = by_folders_of_comfyui(f"{report.text(bars=False)}\n{done.text()}{read}")
    return record, text, to_image(sheet), shown_sheet


def write_listing(folder: Path, dataset: Dataset) -> str:
    """Write the examples to the cache folder, so that a run trains on what was cached even if the dataset changes later."""
    examples = [example_to_json(example) for example in dataset.examples]
    name = f"sets/{digest(examples)[:32]}.json"
    if not (folder / name).is_file():
        write_json(folder / name, examples)
    return name


def read_listing(value: CacheValue) -> list[Example]:
    """The examples of a cache. Raises DataError if their list is gone."""
    import json

    path = Path(value.folder) / value.listing
    try:
        return [example_from_json(data) for data in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or from another version ({error}): queue LoomCache again") from error
