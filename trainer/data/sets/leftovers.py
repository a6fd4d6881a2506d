"""What lies in a set's folders and is not used: every such file and folder is named in the report, with the reason."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence, Set
from pathlib import Path

from ...config.dataset import DatasetConfig
from ...errors import some
from ..images.load import PLUGINS, image_suffixes
from .folders import Walk, is_machine_made, named
from .tables import NAMES

OTHER_IMAGES = {".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".jp2", ".nef", ".orf", ".psd", ".raf", ".rw2", ".svg", ".tga", ".xcf"}  # fmt: skip
"""Suffixes of images that no installed library reads here."""
TEXTS = {".cap", ".caption", ".captions", ".json", ".prompt", ".tag", ".tags", ".text", ".txt", ".wd14"}
"""Suffixes that caption files of some trainer have."""
TABLES = {".csv", ".jsonl", ".parquet", ".tsv", ".xlsx"}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm", ".wmv"}
SYSTEM = {"desktop.ini", "thumbs.db"}
"""Files that Windows puts into folders, in small letters."""


def unread_images(paths: Collection[Path], base: Path) -> list[str]:
    """Notes about images of kinds that cannot be read here, with the library to install."""
    by_suffix: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in OTHER_IMAGES or (suffix in PLUGINS and suffix not in image_suffixes()):
            by_suffix[suffix].append(path)
    return [
        f"{base}: {len(found)} {suffix} left out, {_how_to_read(suffix)}: {named(found, base)}"
        for suffix, found in sorted(by_suffix.items())
    ] + _unread_videos(paths, base)


def _unread_videos(paths: Collection[Path], base: Path) -> list[str]:
    videos = [path for path in paths if path.suffix.lower() in VIDEOS]
    return [f"{base}: {len(videos)} videos are left out, only images are read: {named(videos, base)}"] if videos else []


def other_files(paths: Collection[Path], base: Path) -> list[str]:
    """A line about files that are neither images, videos, texts nor tables, such as notes and other programs' caches."""
    known = image_suffixes() | OTHER_IMAGES | TEXTS | TABLES | VIDEOS | set(PLUGINS)
    other = [path for path in paths if path.suffix.lower() not in known and path.name.lower() not in SYSTEM]
    return [f"{base}: {len(other)} other files are left out: {named(other, base)}"] if other else []


def _how_to_read(suffix: str) -> str:
    if suffix in PLUGINS:
        return f"pip install {PLUGINS[suffix][1]}, or convert them"
    return "this kind of image is not read, convert them"


def unread_texts(
    config: DatasetConfig, paths: Collection[Path], images: Sequence[Path], used: Set[Path], base: Path
) -> list[str]:
    """Notes about texts next to the images that are nobody's caption: under other names, of no image, or in unread tables."""
    rest = [
        path for path in paths if path.suffix.lower() in TEXTS and path not in used and path.name.lower() not in NAMES
    ]
    stems = {(image.parent, image.stem) for image in images}
    near = [path for path in rest if _stem_of(path, stems)]
    strange = [path for path in rest if path.suffix.lower() in config.caption_suffixes and path not in set(near)]
    tables = [path for path in paths if path.name.lower() in NAMES and path not in used]
    notes = []
    if near:
        remedy = (
            'dataset.captions = "json" reads those that are'
            if all(path.suffix.lower() == ".json" for path in near)
            else "dataset.caption_extension names the extension of those that are"
        )
        notes.append(
            f"{base}: {len(near)} text files next to the images are not read as captions: {named(near, base)}; {remedy}"
        )
    if strange:
        notes.append(f"{base}: {len(strange)} caption files belong to no image: {named(strange, base)}")
    if tables:
        notes.append(f"{base}: not read, because captions come from elsewhere: {named(tables, base)}")
    unnamed = [
        path for path in paths if path.suffix.lower() in TABLES and path.name.lower() not in NAMES and path not in used
    ]
    if unnamed:
        notes.append(
            f"{base}: tables are read under the names {', '.join(NAMES)}, and these are left out: {named(unnamed, base)}"
        )
    return notes


def _stem_of(path: Path, stems: Set[tuple[Path, str]]) -> bool:
    """Whether an image stands next to a text called like it, such as a.tags or a.jpg.txt next to a.jpg."""
    name = path.stem
    while True:
        if (path.parent, name) in stems:
            return True
        shorter = os.path.splitext(name)[0]  # noqa: PTH122
        if shorter == name:
            return False
        name = shorter


def unread_folders(found: Walk, base: Path, elsewhere: Set[Path]) -> list[str]:
    """Notes about sub-folders with images that were not asked for. `elsewhere` are the folders that are read for another purpose."""
    real = {Path(os.path.realpath(path)) for path in elsewhere}
    unread = [
        folder
        for folder in found.not_entered
        if not _is_read(Path(os.path.realpath(folder)), real) and _holds_images(folder)
    ]
    if not unread:
        return []
    return [
        f"{base}: sub-folders with images are not read: {named(unread, base)}; set dataset.recursive = true to read them"
    ]


def _is_read(folder: Path, elsewhere: Set[Path]) -> bool:
    """Whether a folder, one above it or one in it is read for another purpose."""
    return any(folder.is_relative_to(other) or other.is_relative_to(folder) for other in elsewhere)


def _holds_images(folder: Path) -> bool:
    suffixes = image_suffixes()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_machine_made(name)]
        if any(os.path.splitext(name)[1].lower() in suffixes and name[0] != "." for name in names):  # noqa: PTH122
            return True
    return False


def machine_made(found: Walk, base: Path) -> list[str]:
    """A line about folders that systems and tools made, which are left out."""
    if not found.machine_made:
        return []
    return [f"{base}: folders that systems or tools made are left out: {some([p.name for p in found.machine_made])}"]
