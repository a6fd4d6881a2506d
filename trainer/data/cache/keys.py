"""What the cache must hold for a dataset: every view of an image and every text, under keys made of all that determines them."""

from dataclasses import dataclass, replace
from functools import cached_property

from ...types import EncoderIdentity, Example, Geometry, ImageVariant
from ..images.index import known_digest
from ..sets.captions import texts_of
from ..sets.dataset import Dataset
from .references import reference_placement, references_digest
from .store import Cache, latent_key, text_key


@dataclass(frozen=True, kw_only=True)
class View:
    """One way in which an example is used: as it is, mirrored, or a variant of it."""

    example: Example
    geometry: Geometry
    variant: ImageVariant | None = None
    """Turn and colours. Its crop is in the geometry, too."""

    @cached_property
    def reference_digests(self) -> tuple[str, ...]:
        """sha256 of each reference image's bytes, computed once, so that a run does not need the files later."""
        return tuple(known_digest(path) for path in self.example.references)

    def key(self, vae: str) -> str:
        """The cache key of the view's latents, for a VAE with this fingerprint."""
        example = self.example
        others = [known_digest(example.mask) if example.mask else "", *(self.reference_digests or [""])]
        return latent_key(example.digest, self.geometry, example.background, others, vae, self.variant)


def views(example: Example) -> list[View]:
    """The views of an example: one, or one a variant; each of them twice if it may be mirrored."""
    upright = [View(example=example, geometry=example.geometry)]
    if example.variants:
        upright = [
            View(
                example=example,
                geometry=replace(example.geometry, crop_left=one.crop_left, crop_top=one.crop_top),
                variant=one,
            )
            for one in example.variants
        ]
    if not example.may_flip:
        return upright
    return [*upright, *(replace(view, geometry=replace(view.geometry, flip=True)) for view in upright)]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text as a text encoder reads it: alone, or together with reference images."""

    text: str
    view: View | None = None
    """The view whose reference images the encoder reads with the text."""


def prompt_key(view: View, caption: str, identity: EncoderIdentity) -> str:
    """The cache key of a caption, as the text encoder reads it for this view."""
    if not _reads_references(view, identity):
        return text_key(caption, identity.text)
    references = references_digest(
        view.reference_digests, identity.text_pixels, view.example.background, flip=view.geometry.flip
    )
    return text_key(caption, identity.text, references)


def prompt_of(view: View, caption: str, identity: EncoderIdentity) -> Prompt:
    """A caption, as the text encoder reads it for this view."""
    return Prompt(text=caption, view=view if _reads_references(view, identity) else None)


def _reads_references(view: View, identity: EncoderIdentity) -> bool:
    return bool(identity.text_pixels) and bool(view.example.references)


def _prompts(dataset: Dataset, identity: EncoderIdentity) -> dict[str, Prompt]:
    """Returns {cache key: prompt} of every text that can occur."""
    every = [view for example in dataset.examples for view in views(example)]
    with_images = [view for view in every if _reads_references(view, identity)]
    text_only = [] if with_images and len(with_images) == len(every) else dataset.captions
    prompts = {text_key(text, identity.text): Prompt(text=text) for text in text_only}
    for view in with_images:
        for text in texts_of(view.example):
            prompts[prompt_key(view, text, identity)] = Prompt(text=text, view=view)
    return prompts


@dataclass(frozen=True, kw_only=True)
class Work:
    """The views and prompts that the cache lacks for a dataset, by key."""

    views: dict[str, View]
    prompts: dict[str, Prompt]
    reused: int
    """Number of items that are in the cache already."""
    text_pixels: int = 0
    """Area at which the text encoder reads reference images, see `EncoderIdentity.text_pixels`."""

    @property
    def count(self) -> int:
        """Number of items to encode."""
        return len(self.views) + len(self.prompts)


def wanted(dataset: Dataset, identity: EncoderIdentity) -> tuple[dict[str, View], dict[str, Prompt]]:
    """Every view and every prompt of a dataset, by cache key."""
    wanted_views = {view.key(identity.vae): view for example in dataset.examples for view in views(example)}
    return wanted_views, _prompts(dataset, identity)


def find_work(cache: Cache, dataset: Dataset, identity: EncoderIdentity, *, texts: bool = True) -> Work:
    """What must be encoded, and a note to the cache that the rest is in use. `texts` = False leaves out the prompts, for runs that
    encode texts in every step."""
    wanted_views, wanted_prompts = wanted(dataset, identity)
    wanted_prompts = wanted_prompts if texts else {}
    cache.touch([*wanted_views, *wanted_prompts])
    new_views, new_prompts = cache.missing(wanted_views), cache.missing(wanted_prompts)
    total = len(wanted_views) + len(wanted_prompts)
    return Work(
        views={key: wanted_views[key] for key in new_views},
        prompts={key: wanted_prompts[key] for key in new_prompts},
        reused=total - len(new_views) - len(new_prompts),
        text_pixels=identity.text_pixels,
    )


def is_filled(cache: Cache, dataset: Dataset, identity: EncoderIdentity, *, texts: bool = True) -> bool:
    """Whether `find_work` would find nothing; the cache is not told."""
    views, prompts = wanted(dataset, identity)
    return not cache.missing(views) and not (texts and cache.missing(prompts))


def reference_geometries(view: View) -> list[Geometry]:
    """How a view's reference images are resized: to about the area of its bucket, in their own proportions."""
    geometry = view.geometry
    return [reference_placement(path, geometry.target, flip=geometry.flip) for path in view.example.references]
