"""Encoding while training: what the cache would hold of an image is made when a batch needs it, and nothing is kept on disk."""

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
"""Encodings that were asked for last, kept in memory: a batch asks twice for an image with references."""


class Recent:
    """Remembers what was made last, by key. For several threads; two that ask at once for the same may both make it."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        made = make()
        with self._lock:
            self._items[key] = made
            while len(self._items) > REMEMBERED:
                self._items.popitem(last=False)
        return made


class Items(Protocol):
    """Where encoded images and texts are found, by the keys of the cache."""

    def get(self, key: str) -> dict[str, Tensor]: ...

    def missing(self, keys: Iterable[str]) -> list[str]: ...


class SharedEncoders:
    """The encoders of a run, loaded when they are first used, and used by one thread at a time (the batch reader, the run)."""

    def __init__(self, load: Callable[[], Encoders]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._encoders: Encoders | None = None

    @contextmanager
    def use(self) -> Iterator[Encoders]:
        with self._lock:
            self._encoders = self._encoders or self._load()
            yield self._encoders


class OnlineItems:
    """In place of a cache: images are encoded one by one, whenever they are asked for; texts are never there."""

    def __init__(self, examples: Sequence[Example], vae: str, encoders: SharedEncoders) -> None:
        """`vae` is the identity of the VAE, as in the keys of the cache."""
        self._views: dict[str, View] = {view.key(vae): view for example in examples for view in views(example)}
        self._encoders, self._recent = encoders, Recent()

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key not in self._views]

    def get(self, key: str) -> dict[str, Tensor]:
        """As `Cache.get`. Raises DataError if the image is no longer the one that was looked at."""
        return self._recent.get(key, lambda: self._encoded(self._views[key]))

    def _encoded(self, view: View) -> dict[str, Tensor]:
        loaded = load_view(view)
        with self._encoders.use() as encoders:
            [made] = encode_views([loaded], encoders)
        return made
