"""Filling the cache: every image through the VAE, every text through the encoders, once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..families.base import Encoders
from ..records import Example, Geometry
from .buckets import Buckets
from .cache import Cache, latent_key, text_key
from .dataset import Dataset
from .images import file_digest, load_mask, load_pixels, upright_size

Progress = Callable[[str, int, int], None]
TEXT_BATCH = 8
ITEMS_PER_SHARD = 32
REFERENCE_STEP = 32
"""Sides of reference images are multiples of this many pixels: an even number of 2x2 patches of latents (Qwen-Image)."""


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    vae: str
    text: str


@dataclass(frozen=True, kw_only=True)
class View:
    """One way an example is seen: upright or mirrored."""

    example: Example
    geometry: Geometry

    def key(self, vae: str) -> str:
        """In the cache, for a VAE of this identity."""
        example = self.example
        others = [file_digest(path) if path else "" for path in (example.mask, example.reference)]
        return latent_key(example.digest, self.geometry, example.background, others, vae)


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    reused: int
    encoded: int
    bytes: int


def views(example: Example) -> list[View]:
    upright = View(example=example, geometry=example.geometry)
    if not example.may_flip:
        return [upright]
    return [upright, View(example=example, geometry=replace(example.geometry, flip=True))]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the cache lacks for a dataset."""

    views: dict[str, View]
    prompts: dict[str, str]
    reused: int

    @property
    def count(self) -> int:
        return len(self.views) + len(self.prompts)


def find_work(cache: Cache, dataset: Dataset, identity: EncoderIdentity) -> Work:
    wanted_views = {view.key(identity.vae): view for example in dataset.examples for view in views(example)}
    wanted_prompts = {text_key(prompt, identity.text): prompt for prompt in dataset.captions}
    new_views, new_prompts = cache.missing(wanted_views), cache.missing(wanted_prompts)
    total = len(wanted_views) + len(wanted_prompts)
    return Work(
        views={key: wanted_views[key] for key in new_views},
        prompts={key: wanted_prompts[key] for key in new_prompts},
        reused=total - len(new_views) - len(new_prompts),
    )


def fill(cache: Cache, work: Work, encoders: Encoders, vae_batch: int, progress: Progress) -> CacheReport:
    """Encode what is missing. Stopping half-way keeps every finished shard."""
    written = 0
    by_size: dict[object, list[str]] = defaultdict(list)
    for key, view in work.views.items():
        by_size[view.geometry.target].append(key)
    done = 0
    for keys in by_size.values():
        for shard in _chunks(keys, max(ITEMS_PER_SHARD, vae_batch)):
            items: dict[str, dict[str, Tensor]] = {}
            for chunk in _chunks(shard, vae_batch):
                items |= dict(zip(chunk, _encode_images([work.views[key] for key in chunk], encoders), strict=True))
                done += len(chunk)
                progress("images", done, len(work.views))
            written += cache.put(items)
    written += _fill_texts(cache, work.prompts, encoders, progress)
    return CacheReport(reused=work.reused, encoded=work.count, bytes=written)


def _fill_texts(cache: Cache, prompts: dict[str, str], encoders: Encoders, progress: Progress) -> int:
    written = done = 0
    for shard in _chunks(list(prompts), ITEMS_PER_SHARD):
        items: dict[str, dict[str, Tensor]] = {}
        for chunk in _chunks(shard, TEXT_BATCH):
            items |= dict(zip(chunk, encoders.text.encode([prompts[key] for key in chunk]), strict=True))
            done += len(chunk)
            progress("captions", done, len(prompts))
        written += cache.put(items)
    return written


def _encode_images(chunk: Sequence[View], encoders: Encoders) -> list[dict[str, Tensor]]:
    """{"latents": (C, h, w) raw} and, where there is a mask, {"mask": (1, h, w)} per view."""
    pixels_BCHW = torch.stack(
        [load_pixels(view.example.path, view.geometry, view.example.background) for view in chunk]
    )
    raw_BCHW = encoders.image.encode(pixels_BCHW).float().cpu()
    items = []
    for view, raw_CHW in zip(chunk, raw_BCHW, strict=True):
        item = {"latents": raw_CHW}
        if view.example.mask is not None:
            mask = load_mask(view.example.mask, view.geometry, from_alpha=view.example.mask == view.example.path)
            item["mask"] = F.interpolate(mask.unsqueeze(0), size=raw_CHW.shape[-2:], mode="area")[0]
        if view.example.reference is not None and (place := reference_geometry(view)):
            item["reference"] = _encode_reference(view.example.reference, place, view.example.background, encoders)
        items.append(item)
    return items


def reference_geometry(view: View) -> Geometry | None:
    """How a view's reference image is resized: to about the area of its target, in its own proportions; None without one."""
    if view.example.reference is None:
        return None
    width, height = view.geometry.target
    buckets = Buckets(method="pixel_area", resolution=round((width * height) ** 0.5), step=REFERENCE_STEP)
    return buckets.geometry(upright_size(view.example.reference), flip=view.geometry.flip)


def _encode_reference(path: Path, geometry: Geometry, background: str, encoders: Encoders) -> Tensor:
    """(C, h, w) raw latents of a reference image."""
    return encoders.image.encode(load_pixels(path, geometry, background).unsqueeze(0))[0].float().cpu()


def _chunks(items: Sequence[str], size: int) -> list[list[str]]:
    iterator = iter(items)
    return list(iter(lambda: list(islice(iterator, size)), []))
