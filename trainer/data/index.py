"""What is known about image files: digest and size, remembered by (path, bytes, time) so that nothing is read twice."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DataError
from ..files import write_json
from ..records import Size
from .images import check_readable, file_digest, upright_size
from .sources import problem_list

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    bytes: int
    modified_ns: int
    digest: str
    """sha256 of the content."""
    width: int
    height: int

    @property
    def size(self) -> Size:
        return (self.width, self.height)


class FileIndex:
    """Facts of image files, kept in one JSON file that is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, FileFacts] = {}
        if path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self.facts = {name: FileFacts(**values) for name, values in stored.items()}
            except (ValueError, TypeError):  # a damaged index only costs reading the files again
                self.facts = {}

    def look_up(self, paths: Iterable[Path], progress: Progress) -> dict[Path, FileFacts]:
        """Facts of every file; new and changed ones are decoded once. Raises DataError naming all unreadable files."""
        wanted = sorted(set(paths))
        problems, fresh = [], False
        found: dict[Path, FileFacts] = {}
        for done, path in enumerate(wanted):
            key, status = str(path.resolve()), path.stat()
            known = self.facts.get(key)
            if known is None or (known.bytes, known.modified_ns) != (status.st_size, status.st_mtime_ns):
                try:
                    known = self.facts[key] = _read(path, status.st_size, status.st_mtime_ns)
                    fresh = True
                except DataError as error:
                    problems.append(str(error))
                    continue
            found[path] = known
            progress(done + 1, len(wanted))
        if fresh:
            write_json(self.path, {name: asdict(facts) for name, facts in self.facts.items()})
        if problems:
            raise DataError(problem_list(problems))
        return found


def _read(path: Path, size: int, modified_ns: int) -> FileFacts:
    check_readable(path)
    width, height = upright_size(path)
    return FileFacts(bytes=size, modified_ns=modified_ns, digest=file_digest(path), width=width, height=height)
