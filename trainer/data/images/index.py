"""An index of image files on disk: digest, size and fingerprint of each, kept by the file's state so that no file is read twice."""

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from ...errors import DataError, problem_list
from ...storage.atomic import write_json
from ...types import Progress, Size
from .faces import largest_face
from .load import file_digest
from .probe import alpha_range, can_fingerprint, probe

VERSION = 3
SAVE_EVERY_S = 10.0
"""While many files are read, the index is saved this often, so that an interruption loses at most this much reading."""
WORKERS = 2
"""Number of reading threads. Reading and decoding release Python's lock; more threads gain little and cost memory."""
COARSE_TICK_NS, FINE_TICK_NS = 2_000_000_000, 20_000_000
"""How far apart two writes must be for their times to differ: FAT has a resolution of two seconds, others of a clock tick."""


@dataclass(frozen=True)
class FileFacts:
    """The state of an image file when it was read, and what was read from it. The order of the fields is the file format."""

    bytes: int
    """Size of the file; -1 if it was written too recently to trust its times."""
    modified_ns: int
    changed_ns: int
    """Time of the last change of content or attributes. It reveals edits that restored the old modification time."""
    digest: str
    """sha256 of the content."""
    width: int
    height: int
    fingerprint: str
    """Perceptual hash, 16 hex digits. Similar images differ in few bits."""
    colours: str
    """Mean colours of 8 x 8 fields, RGB, as hex digits."""
    focus: str
    """Saliency summed over columns and over rows, as hex digits; "" if it was never computed."""
    face: str = ""
    """Middle of the largest face, see `faces.largest_face`; "" if it was never looked for."""
    alpha: str = ""
    """Least and greatest value of the alpha channel, such as "0 255"; "" if it was never asked for."""

    @property
    def size(self) -> Size:
        """(width, height) in pixels, after EXIF rotation."""
        return (self.width, self.height)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The result of looking up image files: the facts of the readable ones, the reasons for the others."""

    facts: dict[Path, FileFacts]
    problems: dict[Path, str]
    """{file: why it cannot be used}; the text includes the path."""


class FileIndex:
    """Facts of image files, kept in one JSON file that is replaced atomically. Processes that share the file keep each other's entries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = _stored(path)
        self.read = 0
        """Number of files that this object had to read."""

    def look_up(self, paths: Iterable[Path], progress: Progress) -> dict[Path, FileFacts]:
        """The facts of every file. Raises DataError that names all unreadable files."""
        survey = self.survey(paths, progress)
        if survey.problems:
            raise DataError(problem_list(list(survey.problems.values())))
        return survey.facts

    def survey(
        self,
        paths: Iterable[Path],
        progress: Progress,
        focused: Set[Path] = frozenset(),
        faced: Set[Path] = frozenset(),
        masked: Set[Path] = frozenset(),
    ) -> Survey:
        """The facts of every readable file, and what is wrong with the others. New and changed files are decoded once.

        `focused` names the files whose saliency is needed, `faced` those whose faces are, `masked` those whose alpha channel is.
        """
        asked = {"focus": focused, "face": faced, "alpha": masked}
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
            wants = [name for name, paths in asked.items() if path in paths]
            if not _unchanged(self.facts.get(names[path]), status, wants):
                unknown.append(path)
        done = len(wanted) - len(unknown)
        progress(done, len(wanted))
        fresh: dict[str, FileFacts] = {}
        saved = time.monotonic()
        try:
            for number, (path, outcome) in enumerate(_in_order(unknown, asked), done + 1):
                if isinstance(outcome, str):
                    problems[path] = outcome
                else:
                    self.facts[names[path]] = fresh[names[path]] = outcome
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
        """Drop the entries of files that no longer exist. Returns how many there were."""
        with self._lock():
            known = _stored(self.path)
            self.facts = {name: facts for name, facts in known.items() if Path(name).is_file()}
            if len(self.facts) < len(known):
                self._write(self.facts)
        return len(known) - len(self.facts)

    def _lock(self) -> AbstractContextManager[object]:
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _save(self, fresh: dict[str, FileFacts]) -> None:
        """Merge with the file's current content, so that another process that shares it loses nothing."""
        with self._lock():
            self.facts = {**_stored(self.path), **self.facts, **fresh}
            self._write(self.facts)

    def _write(self, facts: dict[str, FileFacts]) -> None:
        write_json(
            self.path,
            {"version": VERSION, "files": {name: list(vars(known).values()) for name, known in facts.items()}},
        )


def _stored(path: Path) -> dict[str, FileFacts]:
    """The index in a file. For a damaged one, or one of an older version, nothing: the images are then read again."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["version"] != VERSION:
            return {}
        return {name: FileFacts(*values) for name, values in stored["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _unchanged(known: FileFacts | None, status: os.stat_result, wants: Sequence[str]) -> bool:
    """Whether an entry is complete, with the fields that are wanted of it, and still describes the file."""
    if known is None or (can_fingerprint() and not known.fingerprint) or not all(getattr(known, one) for one in wants):
        return False
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (known.bytes, known.modified_ns, known.changed_ns) == state


def _in_order(paths: Sequence[Path], asked: Mapping[str, Set[Path]]) -> Iterator[tuple[Path, FileFacts | str]]:
    """Returns (path, its facts or what is wrong with it) in the order given. A few threads read a few files ahead."""
    rest = iter(paths)

    def read(path: Path) -> FileFacts | str:
        return _read(path, {name for name, paths in asked.items() if path in paths})

    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[Path, Future[FileFacts | str]]] = deque(
            (path, pool.submit(read, path)) for path in islice(rest, 4 * WORKERS)
        )
        try:
            while waiting:
                path, future = waiting.popleft()
                outcome = future.result()
                if (following := next(rest, None)) is not None:
                    waiting.append((following, pool.submit(read, following)))
                yield path, outcome
        finally:
            for _, future in waiting:
                future.cancel()


def _read(path: Path, wants: Set[str]) -> FileFacts | str:
    """The facts of one file with those that are wanted, or what is wrong with it."""
    try:
        status = path.stat()
        content = path.read_bytes()
        seen = probe(path, content, focused="focus" in wants)
        face = largest_face(path, content) if "face" in wants else ""
        alpha = alpha_range(path, content) if "alpha" in wants else ""
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    # A file written a moment ago can be rewritten without its time or size changing, so its state proves nothing yet.
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
        face=face,
        alpha=alpha,
    )


def known_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes, remembered in this process for as long as size and times of the file stay the same."""
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, *state: int) -> str:
    return file_digest(path)
