"""What is known about image files: digest, size and fingerprint, remembered by the file's state so that nothing is read twice."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import DataError, problem_list
from ...storage.atomic import write_json
from ...types import Size
from .load import file_digest
from .probe import can_fingerprint, probe

Progress = Callable[[int, int], None]
VERSION = 3
SAVE_EVERY_S = 10.0
"""While many files are read, what is known is saved this often: a kill costs that much reading at most."""
WORKERS = 2
"""Reading and decoding leave Python's lock; more threads gain little and cost memory."""
COARSE_TICK_NS, FINE_TICK_NS = 2_000_000_000, 20_000_000
"""How far apart two writes must be for their times to differ: FAT counts in two seconds, others in clock ticks."""


@dataclass(frozen=True)
class FileFacts:
    bytes: int
    modified_ns: int
    changed_ns: int
    """When the system last changed anything about the file; sees edits that put the old time back."""
    digest: str
    """sha256 of the content."""
    width: int
    height: int
    fingerprint: str
    """Perceptual hash, 16 hex digits: few bits differ between pictures that look alike."""
    colours: str
    """Mean colours of 8 x 8 fields, RGB, hex digits."""
    focus: str
    """Saliency, summed over columns and over rows, hex digits; "" if it was never asked for."""

    @property
    def size(self) -> Size:
        return (self.width, self.height)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What became of the files that were asked for."""

    facts: dict[Path, FileFacts]
    problems: dict[Path, str]
    """Why a file cannot be used, path included."""


class FileIndex:
    """Facts of image files, kept in one JSON file that is replaced atomically. Processes that share it add to each other's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = _stored(path)
        self.read = 0
        """Files that had to be read."""

    def look_up(self, paths: Iterable[Path], progress: Progress) -> dict[Path, FileFacts]:
        """Facts of every file. Raises DataError naming all unreadable files."""
        survey = self.survey(paths, progress)
        if survey.problems:
            raise DataError(problem_list(list(survey.problems.values())))
        return survey.facts

    def survey(self, paths: Iterable[Path], progress: Progress, focused: Set[Path] = frozenset()) -> Survey:
        """Facts of every readable file, and what is wrong with the others; new and changed ones are decoded once.

        `focused`: those of which it must be known where they draw the eye.
        """
        wanted = sorted(set(paths), key=str)
        folders = {parent: os.path.realpath(parent) for parent in {path.parent for path in wanted}}
        names = {path: os.path.join(folders[path.parent], path.name) for path in wanted}  # noqa: PTH118 - thousands of them
        problems: dict[Path, str] = {}
        unknown = []
        for path in wanted:
            try:
                status = path.stat()
            except OSError as error:
                problems[path] = f"{path} cannot be read: {error.strerror or error}"
                continue
            if not _unchanged(self.facts.get(names[path]), status, focused=path in focused):
                unknown.append(path)
        done = len(wanted) - len(unknown)
        progress(done, len(wanted))
        fresh: dict[str, FileFacts] = {}
        saved = time.monotonic()
        try:
            for number, (path, found) in enumerate(_in_order(unknown, focused), done + 1):
                if isinstance(found, str):
                    problems[path] = found
                else:
                    self.facts[names[path]] = fresh[names[path]] = found
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self._save(fresh)
                    saved = time.monotonic()
                progress(number, len(wanted))
        finally:
            self.read += len(fresh)
            if fresh:
                self._save(fresh)
        facts = {path: self.facts[names[path]] for path in wanted if path not in problems}
        return Survey(facts=facts, problems={path: problems[path] for path in wanted if path in problems})

    def forget_missing(self) -> int:
        """Drop what is known of files that are gone; returns how many."""
        with self._lock():
            known = _stored(self.path)
            self.facts = {name: facts for name, facts in known.items() if Path(name).is_file()}
            if len(self.facts) < len(known):
                self._write(self.facts)
        return len(known) - len(self.facts)

    def _lock(self) -> AbstractContextManager[Any]:
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _save(self, fresh: dict[str, FileFacts]) -> None:
        """Add to what is in the file, so that a process that shares it loses nothing."""
        with self._lock():
            self.facts = {**_stored(self.path), **self.facts, **fresh}
            self._write(self.facts)

    def _write(self, facts: dict[str, FileFacts]) -> None:
        write_json(
            self.path,
            {"version": VERSION, "files": {name: list(vars(known).values()) for name, known in facts.items()}},
        )


def _stored(path: Path) -> dict[str, FileFacts]:
    """A damaged index, or one of an older version, only costs reading the files again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            return {}
        return {name: FileFacts(*values) for name, values in stored["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _unchanged(known: FileFacts | None, status: os.stat_result, *, focused: bool) -> bool:
    if known is None or (can_fingerprint() and not known.fingerprint) or (focused and not known.focus):
        return False
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (known.bytes, known.modified_ns, known.changed_ns) == state


def _in_order(paths: Sequence[Path], focused: Set[Path]) -> Iterator[tuple[Path, FileFacts | str]]:
    """Facts of each file, or what is wrong with it, in the order given; read by a few threads, a few files ahead."""
    rest = iter(paths)
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[Path, Future[FileFacts | str]]] = deque(
            (path, pool.submit(_read, path, focused=path in focused)) for path in islice(rest, 4 * WORKERS)
        )
        try:
            while waiting:
                path, future = waiting.popleft()
                found = future.result()
                if (following := next(rest, None)) is not None:
                    waiting.append((following, pool.submit(_read, following, focused=following in focused)))
                yield path, found
        finally:
            for _, future in waiting:
                future.cancel()


def _read(path: Path, *, focused: bool) -> FileFacts | str:
    try:
        status = path.stat()
        content = path.read_bytes()
        seen = probe(path, content, focused=focused)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    # A file written a moment ago could be written again without its time or size changing: not to be trusted yet.
    tick = FINE_TICK_NS if status.st_mtime_ns % 1_000_000_000 else COARSE_TICK_NS
    settled = time.time_ns() - status.st_mtime_ns > tick and len(content) == status.st_size
    return FileFacts(
        bytes=status.st_size if settled else -1,
        modified_ns=status.st_mtime_ns,
        changed_ns=status.st_ctime_ns,
        digest=seen.digest,
        width=seen.size[0],
        height=seen.size[1],
        fingerprint=seen.fingerprint,
        colours=seen.colours,
        focus=seen.focus,
    )


def known_digest(path: Path) -> str:
    """sha256 of a file's bytes, remembered in this process for as long as the file stays as it is."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, *state: int) -> str:
    return file_digest(path)
