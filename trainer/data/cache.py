"""The cache: named tensors under content-addressed keys, in immutable safetensors shards and one index.

A key says everything that made the tensors, so nothing can be stale: a changed pixel, caption, size or encoder is another
key. Every distinct tensor is stored once. Shards never change; the index is replaced atomically under a lock, so a kill
loses at most the shard being written and two processes can share a cache.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config_file import digest
from ..errors import RunError
from ..files import remove_temporaries, write_json, write_tensors
from ..identity import tensor_digest
from ..records import Geometry

CODE_VERSION = 2
"""Raised whenever the same inputs would give other tensors."""

Item = Mapping[str, Tensor]


def latent_key(image: str, geometry: Geometry, background: str, others: Sequence[str], vae: str) -> str:
    """Key of an image's raw latents: digest of its bytes, how it was placed, digests of its mask and reference, the VAE."""
    placed = [geometry.resized, geometry.crop_left, geometry.crop_top, geometry.target, geometry.flip]
    return digest(["latents", CODE_VERSION, image, placed, background, list(others), vae])


def text_key(prompt: str, encoder: str) -> str:
    """Key of a prompt's encoding: the text and the encoder's identity."""
    return digest(["text", CODE_VERSION, prompt, encoder])


class Cache:
    """A folder of shards. Reading maps files into memory and copies nothing until a tensor is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._items: dict[str, dict[str, str]] = {}
        self._where: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        self.quarantined: list[str] = []
        self.reload()

    @property
    def _index_file(self) -> Path:
        return self.folder / "index.json"

    def _lock(self) -> AbstractContextManager[Any]:
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "index.lock")

    def reload(self) -> None:
        """Read the index; entries whose shard is missing or of another length are left out."""
        if not self._index_file.is_file():
            self._items, self._where = {}, {}
            return
        try:
            index = json.loads(self._index_file.read_text(encoding="utf-8"))
            shards, tensors, items = (dict(index[name]) for name in ("shards", "tensors", "items"))
        except (ValueError, TypeError, KeyError):  # a damaged index costs encoding again, never an answer that is wrong
            shards, tensors, items = {}, {}, {}
        sound = {name for name, size in shards.items() if self._size(name) == size}
        self.quarantined = sorted(shards.keys() - sound)
        self._where = {tensor: shard for tensor, shard in tensors.items() if shard in sound}
        self._items = {key: names for key, names in items.items() if set(names.values()) <= self._where.keys()}

    def _size(self, shard: str) -> int:
        path = self.folder / shard
        return path.stat().st_size if path.is_file() else -1

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not there, in their order, each once."""
        return list(dict.fromkeys(key for key in keys if key not in self._items))

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors under a key, memory-mapped. Raises KeyError, or RunError if the shard is damaged."""
        return {name: self._tensor(content) for name, content in self._items[key].items()}

    def shapes(self, key: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors under a key, without reading them."""
        return {
            name: tuple(self._shard(self._where[c]).get_slice(c).get_shape()) for name, c in self._items[key].items()
        }

    def _tensor(self, content: str) -> Tensor:
        return self._shard(self._where[content]).get_tensor(content)

    def _shard(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if name not in self._open:
            try:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise RunError(
                    f"the cache shard {self.folder / name} is damaged ({error}): delete it, what it held is encoded again"
                ) from error
        return self._open[name]

    def put(self, items: Mapping[str, Item]) -> int:
        """Store several items in one shard; returns the bytes written. Raises RunError if the disk is full."""
        contents = {key: {name: tensor_digest(tensor) for name, tensor in item.items()} for key, item in items.items()}
        with self._lock():
            for pattern in ("*.safetensors.*", f"{self._index_file.name}.*"):
                remove_temporaries(self.folder, pattern)
            self.reload()  # another process may have added to it
            fresh = {
                contents[key][name]: tensor.detach().cpu().contiguous()
                for key, item in items.items()
                for name, tensor in item.items()
                if contents[key][name] not in self._where
            }
            if fresh:
                shard = f"{digest(sorted(fresh))[:32]}.safetensors"
                write_tensors(self.folder / shard, fresh)
                self._where |= dict.fromkeys(fresh, shard)
            self._items |= contents
            self._write_index()
        return sum(tensor.nbytes for tensor in fresh.values())

    def _write_index(self) -> None:
        shards = {name: self._size(name) for name in sorted(set(self._where.values()))}
        write_json(self._index_file, {"version": 1, "items": self._items, "tensors": self._where, "shards": shards})

    def digest_of(self, keys: Iterable[str]) -> str:
        """Digest of what lies under these keys: changes with any tensor."""
        return digest([[key, sorted(self._items[key].items())] for key in sorted(set(keys))])
