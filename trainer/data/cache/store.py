"""The cache: named tensors under content-addressed keys, in immutable safetensors shards.

A key says everything that made the tensors, so nothing can be stale: a changed pixel, caption, size or encoder is another
key. Every distinct tensor is stored once. There is no index to keep in step: shards say what they hold (`shards`), appear
whole or not at all, and are numbered under a lock, so that processes that share a cache agree on them. Of two shards with
the same key the older one counts.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ...config.toml import digest
from ...errors import RunError
from ...storage.atomic import remove_temporaries
from ...storage.fingerprint import tensor_digest
from ...types import Geometry
from .shards import DamagedShardError, Shard, check_tensor, number_of, read_shard, write_shard

CODE_VERSION = 2
"""Raised whenever the same inputs would give other tensors."""
OPEN_BYTES = 1 << 30
"""Shards that are kept mapped at a time; what is mapped can be taken back by the system and is no memory of ours."""
TOUCH_EVERY_S = 3600.0
QUARANTINE = "quarantine"

Item = Mapping[str, Tensor]


def latent_key(image: str, geometry: Geometry, background: str, others: Sequence[str], vae: str) -> str:
    """Key of an image's raw latents: digest of its bytes, how it was placed, digests of its mask and reference, the VAE."""
    placed = [geometry.resized, geometry.crop_left, geometry.crop_top, geometry.target, geometry.flip]
    return digest(["latents", CODE_VERSION, image, placed, background, list(others), vae])


def text_key(prompt: str, encoder: str, shown: str = "") -> str:
    """Key of a prompt's encoding: the text, the encoder's identity and, if it is shown an image, that image's digest."""
    return digest(["text", CODE_VERSION, prompt, encoder, *([shown] if shown else [])])


class Cache:
    """A folder of shards. Reading maps files into memory and copies nothing until a tensor is used.

    A tensor is compared with its digest when a process reads it for the first time. Several threads may read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, Shard] = {}
        self.quarantined: list[str] = []
        """Damaged shards that were found by this object, moved to quarantine/."""
        self._stuck: set[str] = set()
        self._items: dict[str, Mapping[str, str]] = {}
        self._home: dict[str, str] = {}
        self._where: dict[str, str] = {}
        self._incomplete = False
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._checked: set[str] = set()
        self._guard = threading.RLock()
        self.reload()

    def lock(self) -> AbstractContextManager[Any]:
        """Held while shards are added or taken away. Reading needs none."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "cache.lock")

    def reload(self) -> None:
        """See what other processes have added or taken away; damaged shards are set aside."""
        with self._guard:
            there = {path.name for path in self.folder.glob("*.safetensors") if number_of(path.name) >= 0}
            gone = self.shards.keys() - there
            for name in gone:
                del self.shards[name]
            for name in sorted(there - self.shards.keys() - self._stuck, key=_order):
                try:
                    self.shards[name] = read_shard(self.folder, name)
                except FileNotFoundError:  # taken away between listing and reading
                    continue
                except DamagedShardError:
                    self._set_aside(name)
                    continue
                if not (gone or self._incomplete):
                    self._add(self.shards[name])
            if gone or self._incomplete:
                self._rebuild()

    def _rebuild(self) -> None:
        self._items, self._home, self._where, self._incomplete = {}, {}, {}, False
        ordered = sorted(self.shards.values(), key=lambda shard: _order(shard.name))
        for shard in ordered:  # all tensors first: an item may use one that a younger shard had to write again
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
        """{key: {name: digest of the tensor}}."""
        return self._items

    def home_of(self, key: str) -> str:
        """The shard that lists this item."""
        return self._home[key]

    def __len__(self) -> int:
        return len(self._items)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not there, in their order, each once."""
        return list(dict.fromkeys(key for key in keys if key not in self._items))

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors under a key, memory-mapped. Raises KeyError, or RunError if their shard turns out to be damaged."""
        with self._guard:
            needed = {self._where[content] for content in self._items[key].values()} - self._open.keys()
            if not all((self.folder / name).is_file() for name in needed):
                self.reload()  # another process has pruned, and written what stays anew
            return {name: self._tensor(content) for name, content in self._items[key].items()}

    def shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors under a key, without reading them."""
        with self._guard:
            return {
                name: tuple(self._file(self._where[c]).get_slice(c).get_shape()) for name, c in self._items[key].items()
            }

    def used_by(self, keys: Iterable[str]) -> set[str]:
        """Names of the shards that hold anything of these keys."""
        found = set()
        for key in keys:
            if key in self._items:
                found |= {self._home[key], *(self._where[content] for content in self._items[key].values())}
        return found

    def touch(self, keys: Iterable[str]) -> None:
        """Note that these are in use: a shard's time is that of its last use, which `prune` goes by."""
        now = time.time()
        for name in self.used_by(keys):
            with suppress(OSError):
                path = self.folder / name
                if now - path.stat().st_mtime > TOUCH_EVERY_S:
                    os.utime(path)

    def _tensor(self, content: str) -> Tensor:
        name = self._where[content]
        tensor: Tensor = self._file(name).get_tensor(content)
        if content not in self._checked:
            try:
                check_tensor(content, tensor, self.folder / name)
            except DamagedShardError as error:
                self._set_aside(name)
                self._rebuild()
                raise RunError(_set_aside_message(error, self.folder)) from error
            self._checked.add(content)
        return tensor

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            file = safe_open(self.folder / name, framework="pt")
        except (SafetensorError, OSError) as error:
            raise RunError(
                f"the cache shard {self.folder / name} is gone or damaged ({error}): run this again"
            ) from error
        self._open[name] = file
        while len(self._open) > 1 and sum(self.shards[n].bytes for n in self._open if n in self.shards) > OPEN_BYTES:
            self._open.popitem(last=False)
        return file

    def set_aside(self, name: str) -> None:
        """Move a damaged shard to quarantine/; what it held is missing from now on."""
        with self._guard:
            self._set_aside(name)
            self._rebuild()

    def _set_aside(self, name: str) -> None:
        self.shards.pop(name, None)
        self._open.pop(name, None)
        self.quarantined.append(name)
        try:
            (self.folder / QUARANTINE).mkdir(exist_ok=True)
            (self.folder / name).replace(self.folder / QUARANTINE / name)
        except FileNotFoundError:  # another process was faster
            pass
        except OSError:  # a folder that may only be read, or a file that is in use: left out all the same
            self._stuck.add(name)

    def put(self, items: Mapping[str, Item]) -> int:
        """Store several items in one shard; returns the bytes of tensors written. Raises RunError if the disk is full.

        Items that another process has stored in the meantime stay as they are.
        """
        contents = {key: {name: tensor_digest(tensor) for name, tensor in item.items()} for key, item in items.items()}
        with self._guard, self.lock():
            remove_temporaries(self.folder, "*.safetensors.*")
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
        """Digest of what lies under these keys: changes with any tensor."""
        return digest([[key, sorted(self._items[key].items())] for key in sorted(set(keys))])


def _order(name: str) -> tuple[int, str]:
    return number_of(name), name


def _set_aside_message(error: DamagedShardError, folder: Path) -> str:
    return f"{error}: it was moved to {folder / QUARANTINE}; run this again, only what it held is encoded anew"
