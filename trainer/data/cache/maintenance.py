"""Maintenance of a cache: verifying its content, reporting its size, deleting what is not needed."""

import shutil
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ...storage.atomic import remove_leftovers
from ...storage.tensor_file import ReadTensors
from ...types import Progress
from ..images.index import FileIndex
from .shards import DamagedShardError, Shard, check_shard, number_of, write_shard
from .store import QUARANTINE, Cache

DAY_S = 86_400
FILE_INDEX = "files.json"
OLD_INDEX = "index.json"
"""The index file of old caches, whose shards did not list their own content."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The result of `verify`: what is intact, and what was moved to quarantine."""

    shards: int
    items: int
    bytes: int
    damaged: list[str]
    """Shards that were moved to quarantine/."""
    lost: int
    """Number of items that will be encoded again when they are next needed."""

    def text(self) -> str:
        """The result in one line."""
        intact = f"{self.shards} shards with {self.items} items are intact ({self.bytes:,} bytes read)"
        if not self.damaged:
            return intact
        return f"{intact}; {len(self.damaged)} damaged shards were moved to {QUARANTINE}/, {self.lost} items will be encoded again: {', '.join(self.damaged)}"


@dataclass(frozen=True, kw_only=True)
class Stats:
    """The size of a cache and its content by kind."""

    shards: int
    items: int
    bytes: int
    tensors: int
    shared: int
    """Number of tensors that items share instead of storing them again."""
    names: dict[str, int]
    """{tensor name: number of items that have it}."""
    files: int
    """Number of image files in the file index."""
    quarantined: int
    last_used_days: float
    """Days since any shard was last used."""

    def text(self) -> str:
        """The figures in two lines."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.names.items())
        return (
            f"{self.items} items in {self.shards} shards, {self.bytes:,} bytes: {kinds or 'nothing'}\n"
            f"{self.tensors} tensors stored, {self.shared} shared; {self.files} image files indexed; "
            f"{self.quarantined} damaged shards in quarantine; last used {self.last_used_days:.1f} days ago"
        )


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `prune` deleted, or would delete."""

    shards: int
    items: int
    bytes: int
    leftovers: int
    """Number of damaged shards, half-written files and files of older versions."""
    forgotten: int
    """Number of index entries that were dropped because their image files no longer exist."""
    dry: bool
    """Nothing was deleted."""

    def text(self) -> str:
        """The result in one line."""
        verb = "would be deleted" if self.dry else "deleted"
        return (
            f"{verb}: {self.items} items, {self.shards} shards, {self.bytes:,} bytes; "
            f"{self.leftovers} leftover files; {self.forgotten} image files dropped from the index"
        )


def open_cache(folder: Path) -> Cache:
    """The cache in a folder. Raises ConfigError if the folder does not exist."""
    if not folder.is_dir():
        raise ConfigError(f"cache = {str(folder)!r} is not a folder: name the cache, or the configuration that uses it")
    remove_leftovers(folder)
    return Cache(folder)


def verify(cache: Cache, progress: Progress) -> Verified:
    """Read every byte of a cache. Damaged shards are moved to quarantine, so that their items are encoded again when needed."""
    before = len(cache)
    damaged, read = list(cache.quarantined), 0
    names = sorted(cache.shards)
    for number, name in enumerate(names, 1):
        try:
            read += check_shard(cache.folder, name).bytes
        except FileNotFoundError:  # pruned by another process in the meantime
            continue
        except (DamagedShardError, OSError):
            cache.quarantine(name)
            damaged.append(name)
        progress(number, len(names))
    return Verified(shards=len(cache.shards), items=len(cache), bytes=read, damaged=damaged, lost=before - len(cache))


def stats(cache: Cache) -> Stats:
    """The size and content of a cache, from the headers of its shards."""
    shards = cache.shards.values()
    names: Counter[str] = Counter()
    uses = 0
    for item in cache.items.values():
        names.update(item.keys())
        uses += len(item)
    times = [(cache.folder / shard.name).stat().st_mtime for shard in shards]
    tensors = len({content for shard in shards for content in shard.tensors})
    return Stats(
        shards=len(shards),
        items=len(cache),
        bytes=sum(shard.bytes for shard in shards),
        tensors=tensors,
        shared=max(uses - tensors, 0),
        names=dict(sorted(names.items())),
        files=len(FileIndex(cache.folder / FILE_INDEX).facts),
        quarantined=len(list((cache.folder / QUARANTINE).glob("*"))),
        last_used_days=(time.time() - max(times)) / DAY_S if times else 0.0,
    )


def prune(cache: Cache, *, unused_days: float = 0.0, keep: Collection[str] | None = None, dry: bool = False) -> Pruned:
    """Delete shards that were not used for `unused_days` (0: no limit), items that are not in `keep` (None: no limit), and
    leftover files. `dry` only counts them.

    A shard that is needed in part is first rewritten without the rest, so that an interruption at any moment loses nothing.
    """
    with cache.lock():
        cache.reload()
        before = len(cache)
        old = {name for name in cache.shards if unused_days and _unused_days(cache.folder / name) > unused_days}
        remaining, freed = before, 0
        wanted = set(cache.items) if keep is None else set(keep) & cache.items.keys()
        wanted -= {key for key in wanted if cache.used_by([key]) & old}
        changes = _changes(cache, wanted) if old or keep is not None else {}
        remaining = len(wanted)
        deleted = sum(1 for kept in changes.values() if kept is None)
        freed = sum(
            cache.shards[name].bytes - (sum(kept.tensors.values()) if kept else 0) for name, kept in changes.items()
        )
        leftovers = _leftovers(cache.folder)
        forgotten = 0
        if not dry:
            _apply(cache, changes)
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            forgotten = FileIndex(cache.folder / FILE_INDEX).forget_missing()
    return Pruned(
        shards=deleted,
        items=before - remaining,
        bytes=freed,
        leftovers=len(leftovers),
        forgotten=forgotten,
        dry=dry,
    )


def _unused_days(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / DAY_S


def _changes(cache: Cache, wanted: set[str]) -> dict[str, Shard | None]:
    """Returns {shard: what must be kept of it, None for nothing}. Unchanged shards are not listed."""
    needed = {content for key in wanted for content in cache.items[key].values()}
    changes: dict[str, Shard | None] = {}
    taken: set[str] = set()
    for name, shard in sorted(cache.shards.items()):
        items = {key: names for key, names in shard.items.items() if key in wanted and cache.home_of(key) == name}
        tensors = {content: size for content, size in shard.tensors.items() if content in needed - taken}
        taken |= tensors.keys()
        if len(items) == len(shard.items) and len(tensors) == len(shard.tensors):
            continue
        kept = Shard(name=name, items=items, tensors=tensors, bytes=0)
        changes[name] = kept if items or tensors else None
    return changes


def _apply(cache: Cache, changes: dict[str, Shard | None]) -> None:
    """Write what is kept under new numbers, then delete the old shards."""
    number = max((shard.number for shard in cache.shards.values()), default=0)
    for name, kept in changes.items():
        if kept is not None:
            number += 1
            file = ReadTensors(cache.folder / name)
            write_shard(cache.folder, number, kept.items, {c: file.get_tensor(c) for c in kept.tensors})
            file.close()
        (cache.folder / name).unlink(missing_ok=True)
    cache.reload()


def _leftovers(folder: Path) -> list[Path]:
    """Files in the cache's folder that no cache needs."""
    files = [path for path in folder.glob("*.safetensors") if number_of(path.name) < 0]
    files += [*folder.glob("*.safetensors.*.tmp"), *(folder / QUARANTINE).glob("*")]
    return sorted(files + [path for path in (folder / OLD_INDEX, folder / "index.lock") if path.exists()])
