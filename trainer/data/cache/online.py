"""Encoding while training: images are encoded when a batch needs them, and nothing is kept on disk."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor

from ...families.common.family import Encoders
from ...types import Example
from .fill import encode_views, load_view
from .keys import View, views

REMEMBERED = 64
"""Number of recent encodings that are kept in memory. A batch requests an image with references twice."""


class Recent:
    """A small LRU cache of encoded items. It is thread-safe; two threads that request the same key at once may both compute it."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The item under a key, computed by `make` if it is not there."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        item = make()
        with self._lock:
            self._items[key] = item
            while len(self._items) > REMEMBERED:
                self._items.popitem(last=False)
        return item


class Items(Protocol):
    """A source of encoded images and texts by cache key: the cache, or `OnlineItems`."""

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of an item, without a batch dimension."""
        ...

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not available."""
        ...


class SharedEncoders:
    """The encoders of a run. They are loaded on first use, and used by one thread at a time (the batch reader or the run)."""

    def __init__(self, load: Callable[[], Encoders]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._encoders: Encoders | None = None

    @contextmanager
    def use(self) -> Iterator[Encoders]:
        """Exclusive use of the encoders."""
        with self._lock:
            self._encoders = self._encoders or self._load()
            yield self._encoders


class OnlineItems:
    """Replaces the cache where images are encoded while training, one at a time. It holds no texts."""

    def __init__(self, examples: Sequence[Example], vae: str, encoders: SharedEncoders) -> None:
        """`vae` is the fingerprint of the VAE, as in the keys of the cache."""
        self._views: dict[str, View] = {view.key(vae): view for example in examples for view in views(example)}
        self._encoders, self._recent = encoders, Recent()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not images of the run."""
        return [key for key in keys if key not in self._views]

    def get(self, key: str) -> dict[str, Tensor]:
        """The encoded tensors of a view. Raises DataError if its image has changed since the dataset was built."""
        return self._recent.get(key, lambda: self._encoded(self._views[key]))

    def _encoded(self, view: View) -> dict[str, Tensor]:
        loaded = load_view(view)
        with self._encoders.use() as encoders:
            [item] = encode_views([loaded], encoders)
        return item
