"""Atomic writing of files and folders: a temporary name next to the target, fsync, then one rename."""

import functools
import hashlib
import json
import math
import os
import platform
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict

from ..errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".tmp"
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
"""In the names of temporary files next to the process id, which says nothing on another machine that shares the folder."""
_OWNER = re.compile(rf"\.(?:([0-9a-f]{{8}})-)?(\d+)(?:\.\d+)?{re.escape(TEMPORARY)}$")
"""Version 0.1 named no machine."""
DAY_S = 86_400
DATA_DIGEST = "modelspec.hash_sha256"
"""The key of `data_digest` in a file's metadata, which other programs know too."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises RunError if the disk is full or the folder is not writable."""
    with _whole_file(path) as file:
        file.write(content)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file atomically, whatever its size. Raises RunError."""
    with source.open("rb") as content, _whole_file(path) as file:
        shutil.copyfileobj(content, file, 2**24)


def write_json(path: Path, data: object) -> None:
    """Write a value as indented JSON with sorted keys, atomically. Raises RunError."""
    write_bytes(path, json.dumps(data, indent=1, sort_keys=True).encode())


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically, with the digest of its data in the metadata (`DATA_DIGEST`). Raises RunError."""
    from safetensors.torch import save

    digest = data_digest(save(dict(tensors)))
    write_bytes(path, save(dict(tensors), {**(metadata or {}), DATA_DIGEST: digest}))


def data_digest(content: bytes) -> str:
    """The sha256 of a safetensors file's bytes behind its header, in the form of Stability's ModelSpec: "0x…"."""
    start = 8 + int.from_bytes(content[:8], "little")
    return "0x" + hashlib.sha256(memoryview(content)[start:]).hexdigest()


def stream_tensors(
    path: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    produce: "Callable[[str], Tensor]",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file tensor by tensor, so that only one of them is in memory.

    `layout` is {name: (dtype as in a safetensors header, shape)}. `produce` is called once for each tensor, in the order of
    the file. Raises RunError.
    """
    names = sorted(
        layout, key=lambda name: (-bits_of(layout[name][0]), name)
    )  # wide dtypes first, so that all tensors are aligned
    entries: dict[str, _Entry] = {}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        start, end = end, end + math.prod(shape) * bits_of(dtype) // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    head = {"__metadata__": dict(metadata)} if metadata else {}
    text = json.dumps({**head, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write_tensor(file, produce(name), entries[name], name)


class _Entry(TypedDict):
    dtype: str
    shape: list[int]
    data_offsets: list[int]


def _write_tensor(file: IO[bytes], tensor: "Tensor", entry: _Entry, name: str) -> None:
    import torch

    start, end = entry["data_offsets"]
    plain = tensor.detach().cpu().contiguous()
    assert list(plain.shape) == entry["shape"], f"{name}: {tuple(plain.shape)} was announced as {entry['shape']}"
    assert plain.nbytes == end - start, f"{name}: {plain.dtype} was announced as {entry['dtype']}"
    if plain.numel():
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def bits_of(dtype: str) -> int:
    """Bits per element of a dtype as in a safetensors header: 32 for F32, 8 for F8_E4M3 and for BOOL."""
    return 8 if dtype == "BOOL" else int(re.match(r"[A-Z]+(\d+)", dtype)[1])  # type: ignore[index]


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` when the context ends without an error. `path` must not exist. Raises RunError."""
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
    """Raise RunError unless files can be written into a folder, which is created if necessary."""
    probe = folder / f"probe.{os.getpid()}{TEMPORARY}"
    with _plain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)


def remove_temporaries(folder: Path, pattern: str = "*") -> None:
    """Delete the temporary files of interrupted writes. The caller must hold the folder's lock."""
    for path in folder.glob(f"{pattern}{TEMPORARY}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_leftovers(*folders: Path) -> None:
    """Delete the temporary files of processes of this machine that have ended, killed or not. It needs no lock: what a living
    process writes is left alone."""
    for folder in folders:
        for path in folder.glob(f"*{TEMPORARY}"):
            owner = _OWNER.search(path.name)
            if owner and owner[1] in (MACHINE, None) and _has_ended(int(owner[2]), path):
                path.unlink(missing_ok=True)


def _has_ended(process: int, path: Path) -> bool:
    """Whether a process has ended; where asking could end it (Windows), whether its file has been left for a day."""
    if os.name != "posix":
        with suppress(OSError):
            return time.time() - path.stat().st_mtime > DAY_S
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to somebody else
        return False
    return False


@functools.cache
def _clear_once(folder: Path) -> None:
    """A process clears each folder that it writes into, once."""
    remove_leftovers(folder)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power failure, on systems where a folder can be opened."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that is renamed to `path` when the context ends without an error. Raises RunError."""
    with _plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_once(path.parent)
        temporary = path.with_name(f"{path.name}.{MACHINE}-{os.getpid()}.{threading.get_ident()}{TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another output folder"
        ) from error
