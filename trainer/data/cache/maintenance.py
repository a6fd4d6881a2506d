"""Looking after a cache: is all of it sound, how much is it, and what can go."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ..images.index import FileIndex
from .shards import DamagedShardError, Shard, check_shard, number_of, write_shard
from .store import QUARANTINE, Cache

Progress = Callable[[int, int], None]
DAY_S = 86_400
FILE_INDEX = "files.json"
OLD_INDEX = "index.json"
"""Of caches before shards said themselves what they hold."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    shards: int
    items: int
    bytes: int
    damaged: list[str]
    """Shards that were moved to quarantine/."""
    lost: int
    """Items that will be encoded again when they are next needed."""

    def text(self) -> str:
        sound = f"{self.shards} shards with {self.items} items are sound ({self.bytes:,} bytes read)"
        if not self.damaged:
            return sound
        return f"{sound}; {len(self.damaged)} damaged ones were moved to {QUARANTINE}/, {self.lost} items will be encoded again: {', '.join(self.damaged)}"


@dataclass(frozen=True, kw_only=True)
class Stats:
    shards: int
    items: int
    bytes: int
    tensors: int
    shared: int
    """Tensors that items share instead of storing them again."""
    names: dict[str, int]
    """How many items hold a tensor of this name."""
    files: int
    """Image files whose digest is remembered."""
    quarantined: int
    last_used_days: float
    """Since any of it was last used."""

    def text(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.names.items())
        return (
            f"{self.items} items in {self.shards} shards, {self.bytes:,} bytes: {kinds or 'nothing'}\n"
            f"{self.tensors} tensors stored, {self.shared} shared; {self.files} image files known; "
            f"{self.quarantined} damaged shards set aside; last used {self.last_used_days:.1f} days ago"
        )


@dataclass(frozen=True, kw_only=True)
class Pruned:
    shards: int
    items: int
    bytes: int
    """What went, or would go."""
    leftovers: int
    """Damaged shards, half-written files, files of older versions."""
    forgotten: int
    """Image files that are gone and were forgotten."""
    dry: bool

    def text(self) -> str:
        verb = "would go" if self.dry else "removed"
        return (
            f"{verb}: {self.items} items, {self.shards} shards, {self.bytes:,} bytes; "
            f"{self.leftovers} leftovers; {self.forgotten} image files forgotten"
        )


def open_cache(folder: Path) -> Cache:
    """Raises ConfigError if there is no cache."""
    if not folder.is_dir():
        raise ConfigError(f"cache = {str(folder)!r} is not a folder: name the cache, or the configuration that uses it")
    return Cache(folder)


def verify(cache: Cache, progress: Progress) -> Verified:
    """Read every byte; damaged shards are moved aside, so that what they held is encoded again when needed."""
    before = len(cache)
    damaged, read = list(cache.quarantined), 0
    names = sorted(cache.shards)
    for number, name in enumerate(names, 1):
        try:
            read += check_shard(cache.folder, name).bytes
        except FileNotFoundError:  # pruned by another process in the meantime
            continue
        except DamagedShardError:
            cache.set_aside(name)
            damaged.append(name)
        progress(number, len(names))
    return Verified(shards=len(cache.shards), items=len(cache), bytes=read, damaged=damaged, lost=before - len(cache))


def stats(cache: Cache) -> Stats:
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
    """Take away shards that were not used for so many days (0: any), items that are not among `keep` (None: any), leftovers.

    A shard that is needed in part is written anew first, so that a kill at any moment loses nothing.
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
        gone = sum(1 for live in changes.values() if live is None)
        freed = sum(
            cache.shards[name].bytes - (sum(live.tensors.values()) if live else 0) for name, live in changes.items()
        )
        leftovers = _leftovers(cache.folder)
        forgotten = 0
        if not dry:
            _apply(cache, changes)
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            forgotten = FileIndex(cache.folder / FILE_INDEX).forget_missing()
    return Pruned(
        shards=gone,
        items=before - remaining,
        bytes=freed,
        leftovers=len(leftovers),
        forgotten=forgotten,
        dry=dry,
    )


def _unused_days(path: Path) -> float:
    return (time.time() - path.stat().st_mtime) / DAY_S


def _changes(cache: Cache, wanted: set[str]) -> dict[str, Shard | None]:
    """{shard: what must stay of it, None for nothing}; shards that stay as they are are left out."""
    needed = {content for key in wanted for content in cache.items[key].values()}
    found: dict[str, Shard | None] = {}
    taken: set[str] = set()
    for name, shard in sorted(cache.shards.items()):
        items = {key: names for key, names in shard.items.items() if key in wanted and cache.home_of(key) == name}
        tensors = {content: size for content, size in shard.tensors.items() if content in needed - taken}
        taken |= tensors.keys()
        if len(items) == len(shard.items) and len(tensors) == len(shard.tensors):
            continue
        live = Shard(name=name, items=items, tensors=tensors, bytes=0)
        found[name] = live if items or tensors else None
    return found


def _apply(cache: Cache, changes: dict[str, Shard | None]) -> None:
    from safetensors import safe_open

    number = max((shard.number for shard in cache.shards.values()), default=0)
    for name, live in changes.items():
        if live is not None:
            number += 1
            with safe_open(cache.folder / name, framework="pt") as file:
                write_shard(cache.folder, number, live.items, {c: file.get_tensor(c) for c in live.tensors})
        (cache.folder / name).unlink(missing_ok=True)
    cache.reload()


def _leftovers(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("*.safetensors") if number_of(path.name) < 0]
    found += [*folder.glob("*.safetensors.*.tmp"), *(folder / QUARANTINE).glob("*")]
    return sorted(found + [path for path in (folder / OLD_INDEX, folder / "index.lock") if path.exists()])
