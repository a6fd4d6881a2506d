"""What optimum-quanto unpacks int4 and int2 with: C++ that is compiled at its first use and loaded once a process.

It does both under a lock file that nobody takes away when the process is killed meanwhile: every later one would wait for it for ever.
"""

import os
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError

PACKED = ("int4", "int2")
"""Kinds that need it."""
COMPILES_S = 600.0
"""Seconds after which a lock of another program counts as left behind; compiling takes one to three minutes."""
POLL_S = 1.0


def load_kernels(kind: str, device: torch.device) -> None:
    """Load what a kind of quantized weights needs on a device. Raises ConfigError where it cannot be compiled."""
    if kind not in PACKED:
        return
    from optimum.quanto.library import extensions

    known = {name: extensions.get_extension(name) for name in _names(device) if extensions.is_extension_available(name)}
    for extension in known.values():
        load(extension, kind)


def _names(device: torch.device) -> Sequence[str]:
    """What holds the function for a device, as quanto names it."""
    return {"cpu": ("quanto_cpp",), "cuda": ("quanto_cuda",), "mps": ("quanto_mps",)}.get(device.type, ())


def load(extension: Any, kind: str, sleep: Callable[[float], None] = time.sleep) -> None:
    """Compile or load an extension of quanto, one process of ours at a time. Raises ConfigError where it cannot be compiled."""
    from filelock import FileLock

    if extension._lib is not None:
        return
    build = Path(extension.build_directory)
    mark = build / "lora-loom"
    user = getattr(os, "getuid", int)()  # others may not write to a file of this user
    place = Path(tempfile.gettempdir()) / f"lora-loom-quanto-{zlib.crc32(str(build).encode()):08x}-{user}.lock"
    with FileLock(place):  # the system takes it from a process that is killed
        _clear(build / "lock", mark, sleep)
        try:
            build.mkdir(parents=True, exist_ok=True)
            mark.touch()
            extension.lib  # noqa: B018 - asking for it loads it
        except Exception as error:
            said = next(iter(str(error).strip().splitlines()), "")[:300]
            raise ConfigError(
                f"quantize = {kind!r}: optimum-quanto could not compile what unpacks it ({type(error).__name__}: {said}): install a C++ compiler and ninja, or use int8, float8 or nf4"
            ) from error
        finally:
            mark.unlink(missing_ok=True)


def _clear(lock: Path, mark: Path, sleep: Callable[[float], None]) -> None:
    """Take a lock away that was left behind. `mark` is there if it was by one of ours; another program's may be compiling."""
    if mark.exists():
        lock.unlink(missing_ok=True)
    while (age := _age(lock)) is not None and age < COMPILES_S:
        sleep(POLL_S)
    lock.unlink(missing_ok=True)


def _age(path: Path) -> float | None:
    """Seconds since a file was written; None if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return None
