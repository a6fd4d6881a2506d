"""What the cache must hold for a data set: every way an image is seen, every text, under keys that say what makes them."""

from dataclasses import dataclass, replace

from ..records import Example, Geometry
from .buckets import Buckets
from .cache import Cache, latent_key, text_key
from .dataset import Dataset
from .images import upright_size
from .index import known_digest

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
        others = [known_digest(path) if path else "" for path in (example.mask, example.reference)]
        return latent_key(example.digest, self.geometry, example.background, others, vae)


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


def wanted(dataset: Dataset, identity: EncoderIdentity) -> tuple[dict[str, View], dict[str, str]]:
    """Every view and every prompt of a data set, by key."""
    wanted_views = {view.key(identity.vae): view for example in dataset.examples for view in views(example)}
    return wanted_views, {text_key(prompt, identity.text): prompt for prompt in dataset.captions}


def find_work(cache: Cache, dataset: Dataset, identity: EncoderIdentity) -> Work:
    wanted_views, wanted_prompts = wanted(dataset, identity)
    cache.touch([*wanted_views, *wanted_prompts])
    new_views, new_prompts = cache.missing(wanted_views), cache.missing(wanted_prompts)
    total = len(wanted_views) + len(wanted_prompts)
    return Work(
        views={key: wanted_views[key] for key in new_views},
        prompts={key: wanted_prompts[key] for key in new_prompts},
        reused=total - len(new_views) - len(new_prompts),
    )


def reference_geometry(view: View) -> Geometry | None:
    """How a view's reference image is resized: to about the area of its target, in its own proportions; None without one."""
    if view.example.reference is None:
        return None
    width, height = view.geometry.target
    buckets = Buckets(method="pixel_area", resolution=round((width * height) ** 0.5), step=REFERENCE_STEP)
    return buckets.geometry(upright_size(view.example.reference), flip=view.geometry.flip)
