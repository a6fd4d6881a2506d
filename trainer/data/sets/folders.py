"""Walking the folders of a set, and finding the files that belong to an image whatever the case of their suffixes."""

import os
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import some

MACHINE_MADE = {"__macosx", "__pycache__", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems and tools make, in small letters. So are those whose name starts with a dot or an @ (@eaDir)."""
LISTS_PER_LINE = 5


@dataclass(kw_only=True)
class Walk:
    """What lies in a folder: its files, sorted, and which of its sub-folders were left out and why."""

    files: list[Path] = field(default_factory=list)
    machine_made: list[Path] = field(default_factory=list)
    """Hidden folders and those that systems make: copies and thumbnails, never images of the set."""
    not_entered: list[Path] = field(default_factory=list)
    """Sub-folders that were not read because only the folder itself was asked for."""
    hidden: list[Path] = field(default_factory=list)
    """Files whose name begins with a dot, such as what macOS puts beside each file on other disks (._a.png)."""
    problems: list[str] = field(default_factory=list)
    """Links that lead nowhere or to what is read already, what is no file, and folders that cannot be read."""


def is_machine_made(name: str) -> bool:
    """Whether a folder of this name is hidden or made by a system, such as .ipynb_checkpoints, __MACOSX or @eaDir."""
    return name[:1] in (".", "@") or name.casefold() in MACHINE_MADE


def walk(folder: Path, *, recursive: bool) -> Walk:
    """The files of a folder and, where `recursive`, of its sub-folders, linked ones included. Hidden files are left out.

    A link to a folder that is read anyway is not followed, so that no image is read twice and no circle is entered.
    """
    found = Walk()
    real = Path(os.path.realpath(folder))
    entered: set[Path] = {real}
    waiting = [folder]
    while waiting:
        for entry in _entries(waiting.pop(), found.problems):
            path = Path(entry.path)
            kind = _kind(entry)
            if kind == "folder":
                if is_machine_made(path.name):
                    found.machine_made.append(path)
                elif not recursive:
                    found.not_entered.append(path)
                elif _enter(path, real, entered, linked=entry.is_symlink(), problems=found.problems):
                    waiting.append(path)
            elif path.name[:1] == ".":
                found.hidden.append(path)
            elif kind == "file":
                found.files.append(path)
            else:
                found.problems.append(
                    f"{path} is {'a link that leads nowhere' if kind == 'broken' else 'a pipe or a device'}"
                )
    # Sorting by parts gives the order in which paths compare, but is much faster.
    found.files.sort(key=lambda path: path.parts)
    for paths in (found.machine_made, found.not_entered, found.hidden):
        paths.sort()
    return found


def _entries(folder: Path, problems: list[str]) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"{folder} cannot be read: {error.strerror or error}")


def _kind(entry: "os.DirEntry[str]") -> str:
    """folder, file, broken (a link that leads nowhere) or "" (a pipe or a device)."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "broken" if entry.is_symlink() else ""
    except OSError:  # a link to itself
        return "broken"


def _enter(path: Path, base: Path, entered: set[Path], *, linked: bool, problems: list[str]) -> bool:
    """Whether a sub-folder is read: a link only where its folder is read neither through its own place nor another link."""
    target = Path(os.path.realpath(path))
    if target in entered or (linked and (target.is_relative_to(base) or base.is_relative_to(target))):
        problems.append(f"{path} is left out: it leads to {target}, which is read already")
        return False
    entered.add(target)
    return True


class Listings:
    """The names in folders, each folder listed once, to find files whatever the case of their suffixes."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, folder: Path, stem: str, suffix: str) -> Path | None:
        """The file `stem` + `suffix` of a folder. The case of the suffix does not matter; the exact name is preferred."""
        wanted = stem + suffix
        names = self._folder(folder).get(_key(wanted), [])
        if wanted in names:
            return folder / wanted
        start = _composed(stem)
        near = [name for name in names if _composed(name).startswith(start)]
        return folder / near[0] if near else None

    def alike(self, folder: Path, name: str) -> Path | None:
        """A file of this name in any case; None without one."""
        names = self._folder(folder).get(_key(name), [])
        return folder / names[0] if names else None

    def names(self, folder: Path) -> list[str]:
        """The names of all files of a folder, sorted."""
        return sorted(name for names in self._folder(folder).values() for name in names)

    def _folder(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            listed: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as entries:
                    for name in sorted(entry.name for entry in entries if _kind(entry) == "file"):
                        listed.setdefault(_key(name), []).append(name)
            except OSError:  # the folder is not there: it holds none of the files
                pass
            self._names[folder] = listed
        return self._names[folder]


def same_suffix(name: str) -> str:
    """A name or path with its suffix in small letters and its letters composed, as macOS and Linux may write them differently."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - names in tables need not be paths of this system
    return _composed(stem) + suffix.lower()


def rest_of_name(file: Path, stem: str) -> str:
    """What of a file's name stands behind a stem, in small letters, however both write their accents."""
    return _composed(file.name)[len(_composed(stem)) :].lower()


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _key(name: str) -> str:
    return _composed(name).casefold()


def named(paths: Collection[Path], base: Path) -> str:
    """A few paths below a folder by their names, for a line of the report."""
    return some([os.path.relpath(path, base) for path in paths], LISTS_PER_LINE)
