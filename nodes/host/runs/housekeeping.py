"""What a person does with runs that have ended: another name, away to the trash folder and back; and the order of those that wait."""

import re
import shutil
import time
from pathlib import Path

from ....trainer.errors import ConfigError, RunError
from ....trainer.runs.run_folder import RunFolder
from ....trainer.storage.atomic import write_json
from ....trainer.types import Record
from ..paths import lora_folder, root, run_folder
from .queue import Registry
from .records import LONGEST_NOTE, NOTE_FILE, note_of, summary

TRASH = ".trash"
"""Inside the folder of runs. No run can be called so: a name does not begin with a dot."""
ENTRY = re.compile(r"(?P<name>.+) (?P<day>\d{4}-\d\d-\d\d) (?P<time>\d\d-\d\d-\d\d)(?: \(\d+\))?")
"""What a folder in the trash is called."""


def rename(folder: RunFolder, name: str, registry: Registry) -> Record:
    """Give a run, its folder and its LoRA files another name; returns its summary.

    Raises ConfigError for a name that cannot be a folder's, RunError if the name is taken or the run is being trained.
    """
    target = run_folder(name)
    _refuse_active(folder, registry)
    for taken in (target.path, lora_folder() / name):
        if taken.exists():
            raise RunError(f"{taken} exists: choose another name")
    record = folder.read()
    published = lora_folder() / folder.name
    if published.is_dir():
        shutil.move(published, lora_folder() / name)
    shutil.move(folder.path, target.path)
    for place in (target.path / "loras", lora_folder() / name):
        for path in place.glob(f"{folder.name}*.safetensors"):
            path.rename(path.with_name(_renamed(path.name, folder.name, name)))
    best = record.get("best")
    target.update(
        name=name,
        config={**record.get("config", {}), "name": name},
        lora=_renamed(record.get("lora", ""), folder.name, name),
        best={**best, "lora": _renamed(best.get("lora", ""), folder.name, name)} if best else best,
    )
    registry.forget(folder.name)
    return summary(target, registry)


def keep_note(folder: RunFolder, note: object, starred: object) -> Record:
    """Write what a person says of a run; returns it. Raises ConfigError for another type, or a text that is too long."""
    if not isinstance(note, str) or not isinstance(starred, bool):
        raise ConfigError(f"note = {note!r}, starred = {starred!r}: send a text, and true or false")
    if len(note) > LONGEST_NOTE:
        raise ConfigError(f"the note has {len(note)} characters: write at most {LONGEST_NOTE}")
    write_json(folder.path / NOTE_FILE, {"note": note.strip(), "starred": starred})
    return note_of(folder)


def _renamed(file: str, old: str, new: str) -> str:
    return new + file.removeprefix(old) if file.startswith(old) else file


def move_to_trash(folder: RunFolder, registry: Registry, *, with_loras: bool) -> Path:
    """Move a run, and with it the LoRA files that ComfyUI lists, into the trash folder; returns where it is now.

    Raises RunError if the run is being trained.
    """
    _refuse_active(folder, registry)
    place = _free(root() / TRASH / f"{folder.name} {time.strftime('%Y-%m-%d %H-%M-%S')}")
    place.mkdir(parents=True)
    published = lora_folder() / folder.name
    if with_loras and published.is_dir():
        shutil.move(published, place / "published")
    shutil.move(folder.path, place / "run")
    registry.forget(folder.name)
    return place


def trashed() -> list[Record]:
    """What lies in the trash, the newest first: {"entry": name of its folder, "name": of the run, "deleted": when, "bytes": size}."""
    found = []
    for path, match in _entries():
        said = f"{match['day']} {match['time'].replace('-', ':')}"
        size = sum(one.lstat().st_size for one in path.rglob("*") if one.is_file())
        found.append({"entry": path.name, "name": match["name"], "deleted": said, "bytes": size})
    return sorted(found, key=lambda one: str(one["deleted"]), reverse=True)


def count_trashed() -> int:
    """How many runs lie in the trash."""
    return len(_entries())


def _entries() -> list[tuple[Path, re.Match[str]]]:
    folder = root() / TRASH
    paths = [path for path in folder.iterdir() if not path.is_symlink()] if folder.is_dir() else []
    found = [(path, ENTRY.fullmatch(path.name)) for path in paths if (path / "run").is_dir()]
    return [(path, match) for path, match in found if match]


def restore(entry: str, registry: Registry) -> Record:
    """Bring a run back from the trash, with the LoRA files that went with it; returns its summary.

    Raises RunError if there is no such entry, or if its name is taken.
    """
    place, match = next((found for found in _entries() if found[0].name == entry), (None, None))
    if place is None or match is None:
        raise RunError(f"{entry!r} is not in the trash")
    folder = run_folder(match["name"])
    published, files = place / "published", lora_folder() / folder.name
    if folder.path.exists() or (published.is_dir() and files.exists()):
        raise RunError(f"a run {folder.name} exists, or LoRA files of that name: give them another name first")
    if published.is_dir():
        files.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(published, files)
    shutil.move(place / "run", folder.path)
    shutil.rmtree(place, ignore_errors=True)
    return summary(folder, registry)


def empty_trash() -> int:
    """Delete everything that lies in the trash for good; returns how many runs that were."""
    entries = _entries()
    for path, _ in entries:
        shutil.rmtree(path)
    return len(entries)


def _free(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.name} ({number})"), number + 1
    return free


def _refuse_active(folder: RunFolder, registry: Registry) -> None:
    if registry.active(folder.name) is not None or not folder.is_free():
        raise RunError(f"run {folder.name} is being trained: stop it first")


def whole_number(value: object, what: str) -> int:
    """Raises ConfigError for anything but a number from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{what} = {value!r}: a whole number from 0")
    return value
