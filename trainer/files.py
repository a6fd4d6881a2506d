"""Writing files whole or not at all: a temporary name beside the target, fsync, then one rename."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import RunError

TEMPORARY = ".tmp"


def write_bytes(path: Path, content: bytes) -> None:
    """Raises RunError if the disk is full or the folder cannot be written."""
    with _plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, json.dumps(data, indent=1, sort_keys=True).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file. Raises RunError."""
    from safetensors.torch import save

    write_bytes(path, save(dict(tensors), dict(metadata) if metadata else None))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under `path` complete or not at all. Raises RunError; an old `path` must not exist."""
    temporary = path.with_name(path.name + TEMPORARY)
    with _plain_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            sync_folder(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(path.parent)


def check_writable(folder: Path) -> None:
    """Raise RunError unless files can be written into a folder, which is made if it is not there."""
    probe = folder / f"probe.{os.getpid()}{TEMPORARY}"
    with _plain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)


def remove_temporaries(folder: Path, pattern: str = "*") -> None:
    """Delete what interrupted writes of the same names left behind. Only for whoever holds the folder's lock."""
    for path in folder.glob(f"{pattern}{TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another output folder"
        ) from error
