"""Filling the cache: every image through the VAE, every text through the encoders, once.

While a batch is encoded, the next ones are read and the last ones are written, so that the encoder never waits. What is
encoded together does not depend on where an earlier run was cut off: shards end where batches end.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError, RunError
from ...families.common.family import Encoders
from ...types import named_references
from ..images.index import known_digest
from ..images.load import load_mask, load_pixels
from .keys import Prompt, View, Work, reference_geometries
from .references import encode_with_references
from .store import Cache

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
TEXT_BATCH = 8
ITEMS_PER_SHARD = 32
BYTES_PER_SHARD = 64_000_000
"""A shard ends with the batch that takes it over one of these: a kill costs what is in two of them at most."""
SECONDS_PER_SHARD = 20.0
"""Slow encoders write earlier."""
AHEAD = 2
"""Batches of images that are read in advance."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    reused: int
    encoded: int
    bytes: int
    notes: tuple[str, ...] = ()
    """What did not go as asked, e.g. a smaller batch because memory ran out."""

    def text(self) -> str:
        line = f"{self.reused} items reused, {self.encoded} encoded, {self.bytes:,} bytes written"
        return "\n".join([line, *self.notes])


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Pixels of one view and of what belongs to it, in [-1, 1]; masks in [0, 1]."""

    pixels_CHW: Tensor
    mask_1HW: Tensor | None
    references_CHW: tuple[Tensor, ...]


def fill(cache: Cache, work: Work, encoders: Encoders, vae_batch: int, progress: Progress) -> CacheReport:
    """Encode what is missing. Leaving it half-way, by an exception of `progress` for instance, keeps all that was encoded."""
    images = _Halving("images", vae_batch, "set memory.vae_tiling = true, or lower data.resolution")
    texts = _Halving("captions", TEXT_BATCH, "free GPU memory, or use a smaller text encoder")
    with _Writer(cache, -(-ITEMS_PER_SHARD // vae_batch) * vae_batch) as writer:
        _fill_images(work, encoders, images, writer, progress)
    with _Writer(cache, ITEMS_PER_SHARD) as text_writer:
        _fill_texts(work, encoders, texts, text_writer, progress)
    notes = tuple(note for half in (images, texts) for note in half.notes)
    return CacheReport(reused=work.reused, encoded=work.count, bytes=writer.bytes + text_writer.bytes, notes=notes)


def _fill_images(work: Work, encoders: Encoders, halving: "_Halving", writer: "_Writer", progress: Progress) -> None:
    by_size: dict[object, list[str]] = defaultdict(list)
    for key, view in work.views.items():
        by_size[view.geometry.target].append(key)
    chunks = [chunk for keys in by_size.values() for chunk in _chunks(keys, halving.size)]
    loaded = _ahead(lambda chunk: [load_view(work.views[key]) for key in chunk], chunks)
    done = 0
    for chunk, views in zip(chunks, loaded, strict=True):
        writer.add(dict(zip(chunk, encode_views(views, encoders, halving), strict=True)))
        done += len(chunk)
        progress("images", done, len(work.views))


def _fill_texts(work: Work, encoders: Encoders, halving: "_Halving", writer: "_Writer", progress: Progress) -> None:
    done = 0
    for chunk in _chunks(list(work.prompts), TEXT_BATCH):
        alone = [key for key in chunk if work.prompts[key].beside is None]
        items = halving(encoders.text.encode, [work.prompts[key].text for key in alone])
        writer.add(dict(zip(alone, items, strict=True)))
        beside = [key for key in chunk if work.prompts[key].beside is not None]
        writer.add({key: encode_prompt(work.prompts[key], encoders, work.text_pixels) for key in beside})
        done += len(chunk)
        progress("captions", done, len(work.prompts))


def encode_prompt(prompt: Prompt, encoders: Encoders, text_pixels: int) -> dict[str, Tensor]:
    """One prompt by itself, beside its images where it has some."""
    view = prompt.beside
    if view is None:
        return encoders.text.encode([prompt.text])[0]
    how = (view.example.references, text_pixels, view.example.background)
    return encode_with_references(encoders, prompt.text, *how, flip=view.geometry.flip)


def load_view(view: View) -> Loaded:
    """Raises DataError if the image is no longer the one that was looked at."""
    example = view.example
    if known_digest(example.path) != example.digest:
        raise DataError(f"{example.path} has changed since it was looked at: run this again")
    mask = None
    if example.mask is not None:
        mask = load_mask(example.mask, view.geometry, from_alpha=example.mask == example.path)
    shown = zip(example.references, reference_geometries(view), strict=True)
    return Loaded(
        pixels_CHW=load_pixels(example.path, view.geometry, example.background),
        mask_1HW=mask,
        references_CHW=tuple(load_pixels(path, place, example.background) for path, place in shown),
    )


def encode_views(
    views: Sequence[Loaded], encoders: Encoders, halving: "_Halving | None" = None
) -> list[dict[str, Tensor]]:
    """Per view {"latents": (C, h, w) raw} and, where there are such, {"mask": (1, h, w)} and {"reference",
    "reference_2", …: (C, h, w) raw}."""
    encode = halving or _Halving("images", len(views), "")
    raws = encode(
        lambda part: list(encoders.image.encode(torch.stack(list(part))).float().cpu()), [v.pixels_CHW for v in views]
    )
    items = []
    for view, raw_CHW in zip(views, raws, strict=True):
        item = {"latents": raw_CHW}
        if view.mask_1HW is not None:
            item["mask"] = F.interpolate(view.mask_1HW.unsqueeze(0), size=raw_CHW.shape[-2:], mode="area")[0]
        seen = [encoders.image.encode(one_CHW.unsqueeze(0))[0].float().cpu() for one_CHW in view.references_CHW]
        item |= named_references(seen)
        items.append(item)
    return items


class _Halving:
    """Calls an encoder with as many inputs as memory allows: half of them whenever it runs out, from then on."""

    def __init__(self, what: str, size: int, remedy: str) -> None:
        self.what, self.size, self.remedy = what, size, remedy
        self.notes: list[str] = []

    def __call__(
        self, encode: Callable[[Sequence[T]], list[dict[str, Tensor]] | list[Tensor]], inputs: Sequence[T]
    ) -> list:  # type: ignore[type-arg]
        """Raises RunError when not even one fits."""
        found: list[object] = []
        while len(found) < len(inputs):
            part = inputs[len(found) : len(found) + self.size]
            try:
                found += encode(part)
                continue
            except torch.cuda.OutOfMemoryError as error:
                if len(part) == 1:
                    raise RunError(
                        f"out of memory while encoding a single one of the {self.what}: {self.remedy}"
                    ) from error
            self.size = len(part) // 2  # outside of `except`, which would keep the failed call's tensors alive
            self.notes.append(f"out of memory: {self.what} were encoded {self.size} at a time from then on")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return found


class _Writer:
    """Gathers items into shards and writes them in the background, one at a time; on leaving, whatever is left."""

    def __init__(self, cache: Cache, most: int) -> None:
        self.cache, self.most = cache, most
        self.bytes = 0
        self._items: dict[str, Mapping[str, Tensor]] = {}
        self._size = 0
        self._since = time.monotonic()
        self._pending: Future[int] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="cache writer")

    def __enter__(self) -> "_Writer":
        return self

    def add(self, items: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raises RunError if an earlier shard could not be written."""
        self._items |= items
        self._size += sum(tensor.nbytes for item in items.values() for tensor in item.values())
        late = time.monotonic() - self._since > SECONDS_PER_SHARD
        if len(self._items) >= self.most or self._size >= BYTES_PER_SHARD or late:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._items:
            self._pending = self._pool.submit(self.cache.put, self._items)
        self._items, self._size, self._since = {}, 0, time.monotonic()

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.bytes += pending.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._flush()
            self._wait()
        except RunError:
            if error is None:  # else the first problem is the one to tell
                raise
        finally:
            self._pool.shutdown()


def _ahead(load: Callable[[Sequence[str]], list[Loaded]], chunks: Sequence[Sequence[str]]) -> Iterator[list[Loaded]]:
    """What `load` gives for each chunk, in order, read by threads a little in advance."""
    rest = iter(chunks)
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="image reader") as pool:
        waiting = deque(pool.submit(load, chunk) for chunk in islice(rest, AHEAD))
        try:
            while waiting:
                found = waiting.popleft().result()
                if (following := next(rest, None)) is not None:
                    waiting.append(pool.submit(load, following))
                yield found
        finally:
            for future in waiting:
                future.cancel()


def _chunks(items: Iterable[str], size: int) -> list[list[str]]:
    iterator = iter(items)
    return list(iter(lambda: list(islice(iterator, size)), []))
