"""What lies in a set's folders and is not used: every such file and folder is named in the report, with the reason."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence, Set
from pathlib import Path

from ...config.dataset import DatasetConfig
from ...errors import some
from ..images.load import PLUGINS, image_suffixes
from .folders import Walk, is_machine_made, named, walk
from .tables import NAMES

OTHER_IMAGES = {
    ".3fr", ".ai", ".arw", ".clip", ".cr2", ".cr3", ".cur", ".dds", ".dib", ".dng", ".emf", ".eps", ".erf", ".exr", ".fits", ".hdr",
    ".icns", ".ico", ".iiq", ".insp", ".j2k", ".jp2", ".jpx", ".jxr", ".kdc", ".kra", ".mef", ".mrw", ".nef", ".nrw", ".ora", ".orf",
    ".pbm", ".pcx", ".pef", ".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".sr2", ".srw", ".svg",
    ".tga", ".wbmp", ".wdp", ".wmf", ".x3f", ".xbm", ".xcf", ".xpm",
}  # fmt: skip
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


def other_files(
    config: DatasetConfig, paths: Collection[Path], images: Sequence[Path], used: Set[Path], base: Path
) -> list[str]:
    """A line about files that are no images, videos, captions or tables, such as notes and other programs' caches and settings."""
    known = image_suffixes() | OTHER_IMAGES | TABLES | VIDEOS | set(PLUGINS)
    named_elsewhere = {*used, *(path for kind in _loose_texts(config, paths, images, used) for path in kind)}
    other = [
        path
        for path in paths
        if path.suffix.lower() not in known
        and path.name.lower() not in {*SYSTEM, *NAMES}
        and path not in named_elsewhere
    ]
    return [f"{base}: {len(other)} other files are left out: {named(other, base)}"] if other else []


def _how_to_read(suffix: str) -> str:
    if suffix in PLUGINS:
        return f"pip install {PLUGINS[suffix][1]}, or convert them"
    return "this kind of image is not read, convert them"


def unread_texts(
    config: DatasetConfig, paths: Collection[Path], images: Sequence[Path], used: Set[Path], base: Path
) -> list[str]:
    """Notes about texts next to the images that are nobody's caption: under other names, of no image, or in unread tables."""
    near, strange = _loose_texts(config, paths, images, used)
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


def _loose_texts(
    config: DatasetConfig, paths: Collection[Path], images: Sequence[Path], used: Set[Path]
) -> tuple[list[Path], list[Path]]:
    """Returns (texts next to an image that are not its caption, caption files of no image)."""
    rest = [
        path for path in paths if path.suffix.lower() in TEXTS and path not in used and path.name.lower() not in NAMES
    ]
    stems = {(image.parent, image.stem) for image in images}
    near = [path for path in rest if _stem_of(path, stems)]
    return near, [path for path in rest if path.suffix.lower() in config.caption_suffixes and path not in set(near)]


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
    """Lines about folders that systems and tools made, and about hidden files that would be read without the dot in their names."""
    folders = [path.name for path in found.machine_made]
    kinds = image_suffixes() | TEXTS | TABLES | set(PLUGINS)
    hidden = [path for path in found.hidden if path.suffix.lower() in kinds]
    lines = [f"{base}: folders that systems or tools made are left out: {some(folders)}"] if folders else []
    return lines + ([f"{base}: {len(hidden)} hidden files are left out: {named(hidden, base)}"] if hidden else [])


def unused_twins(sets: Sequence[DatasetConfig], used: Set[Path]) -> list[str]:
    """Notes about masks and reference images that belong to no image of any set. `used` are those that do."""
    deep: dict[Path, bool] = {}
    listed = {name for one in sets if one.only_listed for name in (one.masks, *one.reference_folders)}
    for one in sets:
        for name in {one.masks, *one.reference_folders} - {"", "alpha"} - listed:
            folder = Path(name).expanduser()
            deep[folder] = deep.get(folder, False) or one.recursive or one.layout == "kohya"
    notes = []
    for folder, recursive in sorted(deep.items()):
        files = walk(folder, recursive=recursive).files
        spare = [path for path in files if path.suffix.lower() in image_suffixes() and path not in used]
        if spare:
            notes.append(f"{folder}: {len(spare)} masks or reference images belong to no image: {named(spare, folder)}")
    return notes
