"""Leases: Linux lets a process know that another one is about to write to a file or to cut it, and lets that one wait meanwhile.

A map of a file that is cut ends the process (SIGBUS) the moment one of its weights is read. Whoever opens the file for writing, or
cuts it, waits for the lease: until the holder lets go of it, but not longer than /proc/sys/fs/lease-break-time, 45 seconds as
Linux is delivered. Renaming another file over it, deleting it and changing its times ask nobody: they leave the map as it is.
"""

import os
import signal
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SET_SIGNAL = 10
"""F_SETSIG of Linux's fcntl.h, which Python 3.10 does not name."""


class Lease:
    """A lease on a file for as long as this object lives. There is none on other systems, on file systems without leases, on a file
    of another user (unless root asks), and on one that somebody has open for writing."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.name = name or str(path)
        self._file = _lease(path)
        if self._file is not None:
            self._close = weakref.finalize(self, os.close, self._file)

    @property
    def is_held(self) -> bool:
        return self._file is not None

    @property
    def is_asked_for(self) -> bool:
        """Whether somebody waits to write to the file, or has waited as long as Linux lets them."""
        if self._file is None:
            return False
        import fcntl

        return fcntl.fcntl(self._file, fcntl.F_GETLEASE) == fcntl.F_UNLCK

    def close(self) -> None:
        """Let go of it; whoever waits may write."""
        if self._file is not None:
            self._close()
            self._file = None


def _lease(path: Path) -> int | None:
    """A descriptor with a lease; None where there can be none."""
    try:
        import fcntl

        take, kind = fcntl.F_SETLEASE, fcntl.F_RDLCK
        file = os.open(path, os.O_RDONLY)
    except (ImportError, AttributeError, OSError):
        return None
    try:
        fcntl.fcntl(
            file, SET_SIGNAL, signal.SIGURG
        )  # ignored unless asked for; SIGIO, which comes else, ends a process
        fcntl.fcntl(file, take, kind)
    except OSError:
        os.close(file)
        return None
    return file


@contextmanager
def leased(paths: Iterable[Path]) -> Iterator[None]:
    """Leases on files meanwhile: whoever would cut one of them waits until what reads it has ended, or as long as Linux lets them."""
    with ExitStack() as stack:
        for path in paths:
            stack.callback(Lease(path).close)
        yield
