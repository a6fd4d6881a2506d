"""What the data set nodes do: folders and graph images become sets of the engine, and the cache is filled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...trainer.config import DataConfig, DatasetConfig, MemoryConfig
from ...trainer.config_file import digest, parse
from ...trainer.data.cache import Cache
from ...trainer.data.contact import Thumbnail, contact_sheet
from ...trainer.data.dataset import Dataset, build_dataset, report
from ...trainer.data.encode import find_work
from ...trainer.data.fill import fill
from ...trainer.data.index import FileIndex
from ...trainer.data.sources import find_images
from ...trainer.errors import DataError
from ...trainer.files import write_bytes, write_json
from ...trainer.records import Example
from ..values import CacheValue, DatasetValue, example_from_json, example_to_json
from .encode import encoder_identity, host_encoders
from .paths import cache_folder, resolve_folder
from .pictures import from_image, mask_to_picture, to_image
from .progress import Bar

FOLDER_OPTIONS = ("masks", "references")


def folder_state(folder: str, *, recursive: bool) -> str:
    """Digest of names, sizes and times of the files; the message of the error where the folder cannot be read."""
    try:
        path = resolve_folder(folder, "folder")
    except ValueError as error:
        return str(error)
    files = sorted(p for p in (path.rglob("*") if recursive else path.iterdir()) if p.is_file())
    return digest([[str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns] for p in files])


def add_folder(previous: DatasetValue | None, options: Mapping[str, Any]) -> tuple[DatasetValue, Tensor, str]:
    """(data set, contact sheet, report). Raises ConfigError or DataError naming every problem."""
    checked = {**options, "folder": str(resolve_folder(options["folder"], "folder"))}
    for name in FOLDER_OPTIONS:
        if checked.get(name) and not (name == "masks" and checked[name] == "alpha"):
            checked[name] = str(resolve_folder(checked[name], name))
    return _added(previous, parse(checked, DatasetConfig))


def _added(previous: DatasetValue | None, config: DatasetConfig) -> tuple[DatasetValue, Tensor, str]:
    value = DatasetValue(sets=(*(previous.sets if previous else ()), config))
    images = [(one, image) for one in value.sets for image in find_images(one)]
    sheet = contact_sheet(
        [Thumbnail(path=image.path, caption=image.caption) for _, image in images], f"{len(images)} images"
    )
    lines = [f"{len(images)} images"]
    for one in value.sets:
        mine = [image for other, image in images if other is one]
        lines.append(
            f"{one.folder}: {len(mine)} images, {one.role.replace('_', ' ')}, each seen {one.repeats} x per epoch"
        )
    return value, to_image(sheet), "\n".join(lines)


def add_images(
    previous: DatasetValue | None, images: Tensor, captions: str, masks: Tensor | None, options: Mapping[str, Any]
) -> tuple[DatasetValue, Tensor, str]:
    """Write the images below the cache, named by their content, and add that folder. Raises DataError."""
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if len(lines) not in (1, len(images)):
        raise DataError(
            f"{len(lines)} captions for {len(images)} images: write one line per image, or a single one for all"
        )
    if masks is not None and len(masks) not in (1, len(images)):
        raise DataError(f"{len(masks)} masks for {len(images)} images: connect one per image, or a single one for all")
    contents = [_png(from_image(image)) for image in images]
    mask_contents = [_png(mask_to_picture(mask)) for mask in masks] if masks is not None else []
    name = digest(
        [
            [hashlib.sha256(c).hexdigest() for c in contents],
            lines,
            [hashlib.sha256(c).hexdigest() for c in mask_contents],
        ]
    )[:32]
    folder = cache_folder() / "images" / name
    for index, content in enumerate(contents):
        write_bytes(folder / f"{index:05d}.png", content)
        write_bytes(folder / f"{index:05d}.txt", lines[index if len(lines) > 1 else 0].encode())
        if mask_contents:
            write_bytes(folder / "masks" / f"{index:05d}.png", mask_contents[index if len(mask_contents) > 1 else 0])
    config = {
        **options,
        "folder": str(folder),
        "captions": "sidecar",
        "masks": str(folder / "masks") if mask_contents else "",
    }
    return _added(previous, parse(config, DatasetConfig))


def _png(picture: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def fill_cache(
    value: DatasetValue, vae: Any, clip: Any, data: DataConfig, seed: int, memory: MemoryConfig
) -> tuple[CacheValue, str]:
    """Encode what is missing; returns the cache's record and a report. Raises LoomError before anything is encoded."""
    folder = cache_folder()
    encoders = host_encoders(vae, clip)
    if memory.vae_tiling:
        encoders.image.use_tiles()
    factor = encoders.image.factor
    step = data.bucket_step or 8 * factor
    bar = Bar()
    dataset = build_dataset(value.sets, data, step, seed, FileIndex(folder / "files.json"), bar.update)
    identity = encoder_identity(vae, clip, tiled=memory.vae_tiling)
    cache = Cache(folder)
    work = find_work(cache, dataset, identity)
    done = fill(cache, work, encoders, memory.vae_batch, lambda what, count, total: bar.update(count, total))
    listing = write_listing(folder, dataset)
    record = CacheValue(
        folder=str(folder),
        listing=listing,
        digest=dataset.digest,
        vae=identity.vae,
        text=identity.text,
        factor=factor,
        resolution=data.resolution,
    )
    return record, f"{report(dataset)}\n{done.text()}"


def write_listing(folder: Path, dataset: Dataset) -> str:
    """Keep the examples beside the cache, so that a run sees what was cached and not what the folder holds later."""
    examples = [example_to_json(example) for example in dataset.examples]
    name = f"sets/{digest(examples)[:32]}.json"
    if not (folder / name).is_file():
        write_json(folder / name, examples)
    return name


def read_listing(value: CacheValue) -> list[Example]:
    """Raises DataError if it is gone."""
    import json

    path = Path(value.folder) / value.listing
    try:
        return [example_from_json(data) for data in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise DataError(f"the cache lost {path} ({error}): queue LoomCache again") from error
