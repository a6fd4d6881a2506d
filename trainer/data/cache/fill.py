"""Filling the cache: every image is encoded once by the VAE, every text once by the text encoders.

While one batch is encoded, the next ones are read and the previous ones are written, so that the encoder never waits. The
composition of batches does not depend on where an earlier run was interrupted, because shards end where batches end.
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

from ...errors import DataError, RunError, reading
from ...families.common.family import Encoders
from ...types import StageProgress, named_references
from ...weights.devices import out_of_memory
from ..images.index import known_digest
from ..images.load import load_mask, load_pixels
from .keys import Prompt, View, Work, reference_geometries
from .references import encode_with_references
from .store import Cache

T = TypeVar("T")
R = TypeVar("R")
TEXT_BATCH = 8
ITEMS_PER_SHARD = 32
BYTES_PER_SHARD = 64_000_000
"""A shard ends with the batch that exceeds one of these limits. An interruption loses at most the content of two shards."""
SECONDS_PER_SHARD = 20.0
"""Slow encoders write a shard after this time even if it is small."""
AHEAD = 2
"""Number of batches of images that are read in advance."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """How many items were in the cache, how many were encoded, and the bytes of tensors written."""

    reused: int
    encoded: int
    bytes: int
    notes: tuple[str, ...] = ()
    """What differed from the settings, for instance a smaller batch because memory ran out."""

    def text(self) -> str:
        """The report as one line, followed by the notes."""
        line = f"{self.reused} items reused, {self.encoded} encoded, {self.bytes:,} bytes written"
        return "\n".join([line, *self.notes])


@dataclass(frozen=True, kw_only=True)
class LoadedView:
    """The pixels of one view and of its reference images, in [-1, 1]; the mask in [0, 1]."""

    pixels_CHW: Tensor
    mask_1HW: Tensor | None
    references_CHW: tuple[Tensor, ...]


def fill(cache: Cache, work: Work, encoders: Encoders, vae_batch: int, progress: StageProgress) -> CacheReport:
    """Encode everything that the cache lacks, `vae_batch` images at a time. If `progress` raises, what was encoded is kept.

    Raises DataError if an image has changed, RunError if memory or disk space runs out.
    """
    images = _Halving("images", vae_batch, "set memory.vae_tiling = true, or lower data.resolution")
    texts = _Halving("captions", TEXT_BATCH, "free GPU memory, or use a smaller text encoder")
    with _Writer(cache, -(-ITEMS_PER_SHARD // vae_batch) * vae_batch) as writer:
        _fill_images(work, encoders, images, writer, progress)
    with _Writer(cache, ITEMS_PER_SHARD) as text_writer:
        _fill_texts(work, encoders, texts, text_writer, progress)
    notes = tuple(note for halving in (images, texts) for note in halving.notes)
    return CacheReport(reused=work.reused, encoded=work.count, bytes=writer.bytes + text_writer.bytes, notes=notes)


def _fill_images(
    work: Work, encoders: Encoders, halving: "_Halving", writer: "_Writer", progress: StageProgress
) -> None:
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


def _fill_texts(
    work: Work, encoders: Encoders, halving: "_Halving", writer: "_Writer", progress: StageProgress
) -> None:
    done = 0
    for chunk in _chunks(list(work.prompts), TEXT_BATCH):
        text_only = [key for key in chunk if work.prompts[key].view is None]
        items = halving(encoders.text.encode, [work.prompts[key].text for key in text_only])
        writer.add(dict(zip(text_only, items, strict=True)))
        with_images = [key for key in chunk if work.prompts[key].view is not None]
        writer.add({key: encode_prompt(work.prompts[key], encoders, work.text_pixels) for key in with_images})
        done += len(chunk)
        progress("captions", done, len(work.prompts))


def encode_prompt(prompt: Prompt, encoders: Encoders, text_pixels: int) -> dict[str, Tensor]:
    """The text encoder's outputs for one prompt, read together with the reference images of its view if it has one."""
    view = prompt.view
    if view is None:
        return encoders.text.encode([prompt.text])[0]
    how = (view.example.references, text_pixels, view.example.background)
    return encode_with_references(encoders, prompt.text, *how, flip=view.geometry.flip)


def load_view(view: View) -> LoadedView:
    """Read the files of a view. Raises DataError if the image has changed since the dataset was built."""
    example = view.example
    if known_digest(example.path) != example.digest:
        raise DataError(f"{example.path} has changed since the dataset was read: run this again")
    mask = None
    if example.mask is not None:
        turn = view.variant.rotation if view.variant else 0.0
        mask = load_mask(example.mask, view.geometry, from_alpha=example.mask == example.path, degrees=turn)
    references = zip(example.references, reference_geometries(view), strict=True)
    return LoadedView(
        pixels_CHW=load_pixels(example.path, view.geometry, example.background, view.variant),
        mask_1HW=mask,
        references_CHW=tuple(load_pixels(path, geometry, example.background) for path, geometry in references),
    )


def encode_views(
    views: Sequence[LoadedView], encoders: Encoders, halving: "_Halving | None" = None
) -> list[dict[str, Tensor]]:
    """Returns for each view {"latents": (C, h, w)}, and "mask": (1, h, w), "reference", "reference_2", …: (C, h, w) where it has them.

    Latents are raw, as the VAE gives them, in fp32 on the CPU; masks are averaged down to the size of the latents.
    """
    encode = halving or _Halving("images", len(views), "")
    raws = encode(
        lambda part: list(encoders.image.encode(torch.stack(list(part))).float().cpu()), [v.pixels_CHW for v in views]
    )
    items = []
    for view, raw_CHW in zip(views, raws, strict=True):
        item = {"latents": raw_CHW}
        if view.mask_1HW is not None:
            item["mask"] = F.interpolate(view.mask_1HW.unsqueeze(0), size=raw_CHW.shape[-2:], mode="area")[0]
        references = [encoders.image.encode(ref_CHW.unsqueeze(0))[0].float().cpu() for ref_CHW in view.references_CHW]
        item |= named_references(references)
        items.append(item)
    return items


class _Halving:
    """Calls an encoder in batches, and halves the batch size from then on whenever memory runs out."""

    def __init__(self, what: str, size: int, remedy: str) -> None:
        self.what, self.size, self.remedy = what, size, remedy
        self.notes: list[str] = []

    def __call__(self, encode: Callable[[Sequence[T]], list[R]], inputs: Sequence[T]) -> list[R]:
        """The outputs for all inputs, in order. Raises RunError if not even one input fits into memory."""
        outputs: list[R] = []
        while len(outputs) < len(inputs):
            part = inputs[len(outputs) : len(outputs) + self.size]
            try:
                with reading(f"what encodes the {self.what}", RunError, "check the text encoders and the VAE"):
                    outputs += encode(part)
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise RunError(
                        f"out of memory while encoding a single one of the {self.what}: {self.remedy}"
                    ) from error
            self.size = len(part) // 2  # outside of `except`, which would keep the failed call's tensors alive
            self.notes.append(f"out of memory: {self.what} were encoded {self.size} at a time from then on")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return outputs


class _Writer:
    """Collects items into shards and writes these in the background, one at a time. The rest is written on leaving the context."""

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
            if error is None:  # otherwise the first error is the one to report
                raise
        finally:
            self._pool.shutdown()


def _ahead(
    load: Callable[[Sequence[str]], list[LoadedView]], chunks: Sequence[Sequence[str]]
) -> Iterator[list[LoadedView]]:
    """The result of `load` for each chunk, in order. Threads read a few chunks in advance."""
    rest = iter(chunks)
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="image reader") as pool:
        waiting = deque(pool.submit(load, chunk) for chunk in islice(rest, AHEAD))
        try:
            while waiting:
                loaded = waiting.popleft().result()
                if (following := next(rest, None)) is not None:
                    waiting.append(pool.submit(load, following))
                yield loaded
        finally:
            for future in waiting:
                future.cancel()


def _chunks(items: Iterable[str], size: int) -> list[list[str]]:
    iterator = iter(items)
    return list(iter(lambda: list(islice(iterator, size)), []))
