"""What the cache must hold for a data set: every way an image is seen, every text, under keys that say what makes them."""

from dataclasses import dataclass, replace
from functools import cached_property

from ...types import EncoderIdentity, Example, Geometry
from ..images.index import known_digest
from ..sets.dataset import Dataset
from .references import reference_placement, references_digest
from .store import Cache, latent_key, text_key


@dataclass(frozen=True, kw_only=True)
class View:
    """One way an example is seen: upright or mirrored."""

    example: Example
    geometry: Geometry

    @cached_property
    def reference_digests(self) -> tuple[str, ...]:
        """Of the reference images' bytes, asked for once, so that a run does not need the files any more."""
        return tuple(known_digest(path) for path in self.example.references)

    def key(self, vae: str) -> str:
        """In the cache, for a VAE of this identity."""
        example = self.example
        others = [known_digest(example.mask) if example.mask else "", *(self.reference_digests or [""])]
        return latent_key(example.digest, self.geometry, example.background, others, vae)


def views(example: Example) -> list[View]:
    upright = View(example=example, geometry=example.geometry)
    if not example.may_flip:
        return [upright]
    return [upright, View(example=example, geometry=replace(example.geometry, flip=True))]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text as an encoder reads it: alone, or beside the reference images of a view."""

    text: str
    beside: View | None = None


def prompt_key(view: View, caption: str, identity: EncoderIdentity) -> str:
    """In the cache: of a caption, as it is read for this view."""
    if not _is_shown(view, identity):
        return text_key(caption, identity.text)
    shown = references_digest(
        view.reference_digests, identity.text_pixels, view.example.background, flip=view.geometry.flip
    )
    return text_key(caption, identity.text, shown)


def prompt_of(view: View, caption: str, identity: EncoderIdentity) -> Prompt:
    """A caption, as it is read for this view."""
    return Prompt(text=caption, beside=view if _is_shown(view, identity) else None)


def _is_shown(view: View, identity: EncoderIdentity) -> bool:
    return bool(identity.text_pixels) and bool(view.example.references)


def _prompts(dataset: Dataset, identity: EncoderIdentity) -> dict[str, Prompt]:
    """{key: prompt} of every text that can occur."""
    every = [view for example in dataset.examples for view in views(example)]
    shown = [view for view in every if _is_shown(view, identity)]
    alone = [] if shown and len(shown) == len(every) else dataset.captions
    found = {text_key(text, identity.text): Prompt(text=text) for text in alone}
    for view in shown:
        for text in {"", *view.example.captions}:
            found[prompt_key(view, text, identity)] = Prompt(text=text, beside=view)
    return found


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the cache lacks for a dataset."""

    views: dict[str, View]
    prompts: dict[str, Prompt]
    reused: int
    text_pixels: int = 0
    """As in `EncoderIdentity`."""

    @property
    def count(self) -> int:
        return len(self.views) + len(self.prompts)


def wanted(dataset: Dataset, identity: EncoderIdentity) -> tuple[dict[str, View], dict[str, Prompt]]:
    """Every view and every prompt of a data set, by key."""
    wanted_views = {view.key(identity.vae): view for example in dataset.examples for view in views(example)}
    return wanted_views, _prompts(dataset, identity)


def find_work(cache: Cache, dataset: Dataset, identity: EncoderIdentity, *, texts: bool = True) -> Work:
    """Without `texts` the images alone, where texts are read anew in every step."""
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


def reference_geometries(view: View) -> list[Geometry]:
    """How a view's reference images are resized: to about the area of its target, in their own proportions."""
    place = view.geometry
    return [reference_placement(path, place.target, flip=place.flip) for path in view.example.references]
