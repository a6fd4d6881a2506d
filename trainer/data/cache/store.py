"""The cache: named tensors under content-addressed keys, in immutable safetensors shards.

A key is a digest of everything that determines the tensors, so nothing can be stale: a changed pixel, caption, size or
encoder gives another key. Every distinct tensor is stored once. There is no separate index: shards describe their own
content (`shards`), are written atomically, and are numbered under a lock, so that processes can share a cache. If two shards
have the same key, the older one is used.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ...config.toml import digest
from ...errors import RunError
from ...storage.atomic import remove_leftovers, remove_temporaries
from ...storage.fingerprint import tensor_digest
from ...storage.tensor_file import ReadTensors
from ...types import Geometry, ImageVariant
from .shards import DamagedShardError, Shard, check_tensor, number_of, read_shard, write_shard

CODE_VERSION = 2
"""Part of every key. It is increased when a change of the code makes other tensors of the same inputs."""
OPEN_FILES = 64
"""Shards whose files are kept open at a time."""
TOUCH_EVERY_S = 3600.0
"""The time of last use of a shard is updated at most this often."""
QUARANTINE = "quarantine"
"""Name of the sub-folder that damaged shards are moved to."""

Item = Mapping[str, Tensor]


def latent_key(
    image: str,
    geometry: Geometry,
    background: str,
    others: Sequence[str],
    vae: str,
    variant: ImageVariant | None = None,
) -> str:
    """The key of an image's raw latents.

    `image` is the digest of its bytes, `others` are the digests of its mask and reference images ("" for none), and `vae` is
    the fingerprint of the VAE. A variant that is the image itself has the image's key.
    """
    itself = ImageVariant(crop_left=geometry.crop_left, crop_top=geometry.crop_top)
    changed = [] if variant in (None, itself) else [asdict(variant or itself)]
    placed = [geometry.resized, geometry.crop_left, geometry.crop_top, geometry.target, geometry.flip]
    return digest(["latents", CODE_VERSION, image, placed, background, list(others), vae, *changed])


def text_key(prompt: str, encoder: str, references: str = "") -> str:
    """The key of a prompt's encoding. `encoder` is the fingerprint of the text encoders, `references` the digest of the
    reference images that are read with the text ("" for none)."""
    return digest(["text", CODE_VERSION, prompt, encoder, *([references] if references else [])])


class Cache:
    """A folder of shards. Tensors are read when they are used, never mapped (`ReadTensors`).

    A tensor is verified against its digest when a process reads it for the first time. Several threads may read at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self.quarantined: list[str] = []
        """Names of the damaged shards that this object has moved to quarantine/."""
        self._stuck: set[str] = set()
        self._items: dict[str, Mapping[str, str]] = {}
        self._home: dict[str, str] = {}
        self._where: dict[str, str] = {}
        self._incomplete = False
        self._open: OrderedDict[str, ReadTensors] = OrderedDict()
        self._checked: set[str] = set()
        self._guard = threading.RLock()
        self.reload()

    def lock(self) -> AbstractContextManager[object]:
        """The lock between processes that is held while shards are added or deleted. Reading does not need it."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "cache.lock")

    def reload(self) -> None:
        """Take over what other processes have added or deleted. Damaged shards are moved to quarantine."""
        with self._guard:
            present = {path.name for path in self.folder.glob("*.safetensors") if number_of(path.name) >= 0}
            deleted = self.shards.keys() - present
            for name in deleted:
                del self.shards[name]
            for name in sorted(present - self.shards.keys() - self._stuck, key=_order):
                try:
                    self.shards[name] = read_shard(self.folder, name)
                except FileNotFoundError:  # deleted between listing and reading
                    continue
                except DamagedShardError:
                    self._quarantine(name)
                    continue
                except OSError:  # another user's, or a folder of this name: it stays, and its items are encoded again
                    self.quarantined.append(name)
                    self._stuck.add(name)
                    continue
                if not (deleted or self._incomplete):
                    self._add(self.shards[name])
            if deleted or self._incomplete:
                self._rebuild()

    def _rebuild(self) -> None:
        """Make the tables of items and tensors again from the headers of all shards."""
        self._items, self._home, self._where, self._incomplete = {}, {}, {}, False
        ordered = sorted(self.shards.values(), key=lambda shard: _order(shard.name))
        for shard in ordered:  # all tensors first: an item may use one that a later shard had to rewrite
            for content in shard.tensors:
                self._where.setdefault(content, shard.name)
        for shard in ordered:
            self._add(shard)

    def _add(self, shard: Shard) -> None:
        for content in shard.tensors:
            self._where.setdefault(content, shard.name)
        for key, names in shard.items.items():
            if not all(content in self._where for content in names.values()):
                self._incomplete = True
            elif key not in self._items:
                self._items[key], self._home[key] = names, shard.name

    @property
    def items(self) -> Mapping[str, Mapping[str, str]]:
        """{cache key: {tensor name: digest of the tensor}}."""
        return self._items

    def home_of(self, key: str) -> str:
        """The name of the shard that lists an item."""
        return self._home[key]

    def __len__(self) -> int:
        return len(self._items)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not in the cache, in order and without duplicates."""
        return list(dict.fromkeys(key for key in keys if key not in self._items))

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors under a key. Raises KeyError, or RunError if their shard is damaged."""
        with self._guard:
            needed = {self._where[content] for content in self._items[key].values()} - self._open.keys()
            if not all((self.folder / name).is_file() for name in needed):
                self.reload()  # another process has pruned the cache and rewritten what is kept
            return {name: self._tensor(content) for name, content in self._items[key].items()}

    def shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors under a key, without reading their data."""
        with self._guard:
            return {
                name: tuple(self._file(self._where[c]).get_slice(c).get_shape()) for name, c in self._items[key].items()
            }

    def used_by(self, keys: Iterable[str]) -> set[str]:
        """The names of the shards that hold any tensor of these keys."""
        names = set()
        for key in keys:
            if key in self._items:
                names |= {self._home[key], *(self._where[content] for content in self._items[key].values())}
        return names

    def touch(self, keys: Iterable[str]) -> None:
        """Record that these items are in use: a shard's modification time is its time of last use, which `prune` relies on."""
        now = time.time()
        for name in self.used_by(keys):
            with suppress(OSError):
                path = self.folder / name
                if now - path.stat().st_mtime > TOUCH_EVERY_S:
                    os.utime(path)

    def _tensor(self, content: str) -> Tensor:
        name = self._where[content]
        try:
            tensor = self._file(name).get_tensor(content)
            if content not in self._checked:
                check_tensor(content, tensor, self.folder / name)
        except (DamagedShardError, OSError, ValueError) as error:
            self._quarantine(name)
            self._rebuild()
            what = (
                error
                if isinstance(error, DamagedShardError)
                else f"data in the cache shard {self.folder / name} is damaged ({error})"
            )
            raise RunError(
                f"{what}: it was moved to {self.folder / QUARANTINE}; run this again, its items will be encoded again"
            ) from error
        self._checked.add(content)
        return tensor

    def _file(self, name: str) -> ReadTensors:
        """The file of a shard, opened if necessary. Raises RunError."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            file = ReadTensors(self.folder / name)
        except (ValueError, OSError) as error:
            raise RunError(
                f"the cache shard {self.folder / name} is missing or damaged ({error}): run this again"
            ) from error
        self._open[name] = file
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file

    def quarantine(self, name: str) -> None:
        """Move a damaged shard to quarantine/. Its items are missing from then on."""
        with self._guard:
            self._quarantine(name)
            self._rebuild()

    def _quarantine(self, name: str) -> None:
        self.shards.pop(name, None)
        if (open_file := self._open.pop(name, None)) is not None:
            open_file.close()  # Windows moves no open file
        self.quarantined.append(name)
        try:
            (self.folder / QUARANTINE).mkdir(exist_ok=True)
            (self.folder / name).replace(self.folder / QUARANTINE / name)
        except FileNotFoundError:  # another process has moved it already
            pass
        except OSError:  # a read-only folder, or a file in use: the shard is ignored all the same
            self._stuck.add(name)

    def put(self, items: Mapping[str, Item]) -> int:
        """Store several items in one shard. Returns the bytes of tensors written. Raises RunError if the disk is full.

        Items that another process has stored in the meantime are kept as they are.
        """
        contents = {key: {name: tensor_digest(tensor) for name, tensor in item.items()} for key, item in items.items()}
        with self._guard, self.lock():
            remove_temporaries(self.folder, "*.safetensors.*")
            remove_leftovers(self.folder)  # of the index of files, which needs no lock
            self.reload()
            new = {key: names for key, names in contents.items() if key not in self._items}
            if not new:
                return 0
            fresh = {
                content: items[key][name].detach().cpu().contiguous()
                for key, names in new.items()
                for name, content in names.items()
                if content not in self._where
            }
            last = max((shard.number for shard in self.shards.values()), default=0)
            shard = write_shard(self.folder, last + 1, new, fresh)
            self.shards[shard.name] = shard
            self._add(shard)
        return sum(tensor.nbytes for tensor in fresh.values())

    def digest_of(self, keys: Iterable[str]) -> str:
        """A digest of the content under these keys. It changes with any tensor."""
        return digest([[key, sorted(self._items[key].items())] for key in sorted(set(keys))])


def _order(name: str) -> tuple[int, str]:
    return number_of(name), name
