"""A folder of images as a person edits it in ComfyUI's page: what is in it, how it will be cropped, and its captions."""

import io
import os
from pathlib import Path

import folder_paths
from PIL import Image, ImageOps

from ....trainer.config.run import DataConfig, DatasetConfig
from ....trainer.data.images.index import FileIndex
from ....trainer.data.images.load import image_suffixes, opened
from ....trainer.data.report import make_report, namer
from ....trainer.data.sets.dataset import build_dataset
from ....trainer.data.unpack import is_table
from ....trainer.errors import ConfigError, DataError
from ....trainer.storage.atomic import write_bytes
from ....trainer.types import Example, Record
from ..paths import allowed_roots, cache_folder, is_inside, resolve_folder

THUMBNAIL = 256
"""Pixels of the longer side."""
MOST_FOLDERS = 500
DEEPEST = 4
"""Levels of folders below a root that are listed."""
LONGEST = 20_000
"""Characters of a caption."""


def folders() -> list[str]:
    """Folders with images, as Loom Dataset names them: below ComfyUI's input directory without it, below other roots in full."""
    base = Path(folder_paths.get_input_directory())
    own = {Path(folder_paths.get_output_directory()), Path(folder_paths.get_temp_directory())}
    found: list[str] = []
    for root in [base, *(root for root in allowed_roots() if root != base and root not in own)]:
        for folder in _with_images(root):
            found.append(folder.relative_to(base).as_posix() if root == base else str(folder))
            if len(found) >= MOST_FOLDERS:
                return found
    return [name for name in found if name != "."]


def _with_images(root: Path) -> list[Path]:
    found = []
    for place, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if len(Path(place).relative_to(root).parts) >= DEEPEST:
            inner.clear()
        if any(is_image(Path(name)) for name in files):
            found.append(Path(place))
    return found


def look(name: str, resolution: int, step: int) -> Record:
    """What is in a folder: {"images": [{"name", "caption", "width", "height", "bucket", "crop", "warnings"}], "buckets", "warnings", "can_edit"}.

    `crop` is (left, top, width, height) as parts of the image. Raises ConfigError for a folder that may not be named,
    DataError if there is no image in it.
    """
    folder = resolve_folder(name, "folder")
    if is_table(folder):
        raise DataError(
            f"{name} is a Hugging Face dataset: its images and captions are inside of tables, and not edited here"
        )
    data = DataConfig(resolution=resolution)
    sets = [
        DatasetConfig(folder=str(folder), captions="fixed", caption="image")
    ]  # an image without one is shown as well
    dataset = build_dataset(sets, data, step, 0, FileIndex(cache_folder() / "files.json"), lambda *_: None)
    report = make_report(dataset)
    name_of = namer(dataset)
    twice = {one for group in report.copies for one in group}
    alike = {one for group in report.near_duplicates or [] for one in group}
    images = []
    for example in sorted(dataset.examples, key=lambda one: one.path):
        known = name_of(example.path)
        warnings = [f"enlarged {report.enlarged[known]:g} times"] if known in report.enlarged else []
        warnings += ["the same file twice"] if known in twice else []
        warnings += ["nearly the same as another"] if known in alike and known not in twice else []
        shown = _image(example, folder)
        warnings += [] if shown["caption"] else ["no caption file"]
        images.append({**shown, "warnings": warnings})
    buckets = [{"width": one.width, "height": one.height, "images": one.images} for one in report.buckets]
    return {
        "folder": name,
        "images": images,
        "buckets": buckets,
        "warnings": report.warnings,
        "can_edit": may_write(folder),
    }


def _image(example: Example, folder: Path) -> Record:
    geometry = example.geometry
    wide, high = geometry.resized
    crop = (geometry.crop_left / wide, geometry.crop_top / high, geometry.target[0] / wide, geometry.target[1] / high)
    return {
        "name": example.path.relative_to(folder).as_posix(),
        "caption": own_caption(example.path),
        "width": geometry.original[0],
        "height": geometry.original[1],
        "bucket": list(geometry.target),
        "crop": [round(part, 4) for part in crop],
    }


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name."""
    return path.suffix.lower() in image_suffixes()


def own_caption(image: Path) -> str:
    """The text of the caption file of an image; "" without one. Raises DataError for one that may not be read."""
    path = image.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    except OSError as error:
        raise DataError(f"cannot read the caption {path}: {error.strerror or error}") from error


def may_write(folder: Path) -> bool:
    """Whether captions may be written there: below the folders of ComfyUI and the roots of the settings file."""
    return any(is_inside(folder, root) for root in allowed_roots())


def write_caption(name: str, image: str, text: str) -> None:
    """Write the caption file of an image of a folder. Raises ConfigError for anything else than an image below a root."""
    path = find_image(name, image)
    if not may_write(path.parent):
        raise ConfigError(
            f'{path.parent} is not below a folder of datasets: add it to "roots" in lora_loom.json to edit captions'
        )
    if len(text) > LONGEST or "\0" in text:
        raise ConfigError(f"a caption of {len(text)} characters: at most {LONGEST}, and no NUL character")
    write_bytes(path.with_suffix(".txt"), text.strip().encode())


def find_image(name: str, image: str) -> Path:
    """An image of a folder. Raises ConfigError for a name that leads out of it, or is not that of an image."""
    folder = resolve_folder(name, "folder")
    path = folder / image
    if "\0" in image or not is_inside(path, folder) or not is_image(path) or not path.is_file():
        raise ConfigError(f"{image!r} is not an image in {folder}")
    return path


def thumbnail(name: str, image: str) -> bytes:
    """A small JPEG of an image, upright. Raises ConfigError, or DataError for an image that cannot be read."""
    with opened(find_image(name, image)) as whole:
        small = ImageOps.exif_transpose(whole)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        paper = Image.new("RGB", small.size, "white")
        rgba = small.convert("RGBA")
        paper.paste(rgba, mask=rgba)
    out = io.BytesIO()
    paper.save(out, "jpeg", quality=82)
    return out.getvalue()
