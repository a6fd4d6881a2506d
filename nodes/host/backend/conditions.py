"""A network's inputs for every caption and every way an image is seen, made by the model's own `extra_conds`.

Only the node's thread makes them. They go to the engine's cache, so RAM does not grow with the dataset; equal tensors are stored once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ....trainer.config.toml import digest
from ....trainer.data.batches import PickedExample
from ....trainer.data.cache.keys import View, prompt_key, views
from ....trainer.data.cache.store import Cache
from ....trainer.data.sets.captions import texts_of
from ....trainer.errors import ConfigError
from ....trainer.families import all_families
from ....trainer.types import Conditioning, EncoderIdentity, Example, Geometry, references_in
from ..comfy_types import BaseModel
from .denoiser import latent_dims
from .packing import pack, unpack

CODE_VERSION = 1
ITEMS_PER_SHARD = 64
CPU = torch.device("cpu")
Given: TypeAlias = tuple[Mapping[str, object], Geometry, Mapping[str, float], int, int, Sequence[Tensor]]
"""The arguments of `network_inputs` after the model."""


@dataclass(frozen=True, kw_only=True)
class ConditionSource:
    """What decides a network's inputs besides caption and geometry."""

    identity: str
    """Digest of the model and how it samples."""
    encoders: EncoderIdentity
    values: Mapping[str, float]
    """Added to every conditioning, e.g. Flux's guidance."""
    factor: int
    """Pixels per latent row or column."""

    def key(self, view: View, view_key: str, caption: str) -> str:
        """The key of a sample's inputs in the cache. References belong to the view, so the view's key stands for them."""
        geometry = view.geometry
        place = [
            geometry.original,
            geometry.resized,
            geometry.crop_left,
            geometry.crop_top,
            geometry.target,
            geometry.flip,
        ]
        reference = view_key if view.example.references else ""
        return digest(
            [
                "conds",
                CODE_VERSION,
                self.identity,
                prompt_key(view, caption, self.encoders),
                place,
                dict(self.values),
                reference,
            ]
        )


def fill_conditions(
    cache: Cache,
    source: ConditionSource,
    model: BaseModel,
    examples: Iterable[Example],
    progress: Callable[[int, int], None],
) -> None:
    """Compute what the cache lacks, for every example, each of its captions and the empty prompt."""
    wanted: dict[str, tuple[View, str, str]] = {}
    for example in examples:
        for view in views(example):
            key = view.key(source.encoders.vae)
            for caption in texts_of(example):
                wanted[source.key(view, key, caption)] = (view, key, caption)
    cache.touch(wanted)
    if with_reference := next((one for one in wanted.values() if one[0].example.references), None):
        check_accepts_references(model, *given(cache, source, *with_reference))
    missing = cache.missing(sorted(wanted))
    for start in range(0, len(missing), ITEMS_PER_SHARD):
        chunk = missing[start : start + ITEMS_PER_SHARD]
        cache.put({key: pack(_inputs(cache, source, model, *wanted[key])) for key in chunk})
        progress(min(start + ITEMS_PER_SHARD, len(missing)), len(missing))


def _inputs(
    cache: Cache, source: ConditionSource, model: BaseModel, view: View, view_key: str, caption: str
) -> dict[str, object]:
    return network_inputs(model, *given(cache, source, view, view_key, caption))


def given(cache: Cache, source: ConditionSource, view: View, view_key: str, caption: str) -> Given:
    """What the cache and the source hold for one sample."""
    text = unpack(cache.get(prompt_key(view, caption, source.encoders)))
    item = cache.get(view_key)
    references = [latents.unsqueeze(0) for latents in references_in(item)]
    return text, view.geometry, source.values, source.factor, item["latents"].shape[0], references


def check_accepts_references(
    model: BaseModel,
    text: Mapping[str, object],
    geometry: Geometry,
    values: Mapping[str, float],
    factor: int,
    channels: int,
    references: Sequence[Tensor],
) -> None:
    """Raise ConfigError for a model whose inputs stay the same without the reference images. Arguments as of `network_inputs`."""
    given = (text, geometry, values, factor, channels)
    if network_inputs(model, *given, references).keys() == network_inputs(model, *given).keys():
        raise ConfigError(
            f"this MODEL ({type(model).__name__}) does not accept reference images: take them out, or load an edit model"
        )


def network_inputs(
    model: BaseModel,
    text: Mapping[str, object],
    geometry: Geometry,
    values: Mapping[str, float],
    factor: int,
    channels: int,
    references: Sequence[Tensor] = (),
) -> dict[str, object]:
    """The arguments of the network for one sample: tensors with a batch of 1, lists of such, constants.

    `values` are added to the conditioning. `factor` is pixels per latent row, `channels` those of the latents, `references` are
    raw latents (1, C, h, w). A model that runs a part of its network for this, as Anima does, finds everything where that is.
    """
    place = place_of(model)
    width, height = geometry.target
    dims = latent_dims(model)
    shape = (1, channels, *([1] if dims == 5 else []), height // factor, width // factor)
    asked: dict[str, object] = {name: moved(value, place) for name, value in {**text, **values}.items()}
    if references:
        there = [latent.to(place) for latent in references]
        asked["reference_latents"] = [latent.unsqueeze(2) if dims == 5 else latent for latent in there]
    asked |= size_conditions(type(model).__name__, geometry)
    asked |= {"noise": torch.zeros(shape, device=place), "device": place, "prompt_type": "positive"}
    return {name: moved(value.cond, CPU) for name, value in model.extra_conds(**asked).items()}


def place_of(model: BaseModel) -> torch.device:
    """Where the network lies: on the CPU, unless a part of it is elsewhere."""
    devices = (parameter.device for parameter in model.diffusion_model.parameters())
    return next((device for device in devices if device.type not in ("cpu", "meta")), CPU)


def moved(value: object, device: torch.device) -> object:
    """A value of the conditioning with its tensors on a device; other values stay as they are."""
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def size_conditions(class_name: str, geometry: Geometry) -> dict[str, int]:
    """The size conditions of an image for a model of this class, in pixels: the bucket's size, or for SDXL also the original
    size and the crop. A mirrored image is cropped from its other edge."""
    if not any(class_name in family.comfy.crop_classes for family in all_families().values()):
        return {"width": geometry.target[0], "height": geometry.target[1]}
    left = geometry.crop_left
    if geometry.flip:
        left = geometry.resized[0] - geometry.target[0] - left
    return {
        "width": geometry.original[0],
        "height": geometry.original[1],
        "crop_w": left,
        "crop_h": geometry.crop_top,
        "target_width": geometry.target[0],
        "target_height": geometry.target[1],
    }


def condition(cache: Cache, source: ConditionSource) -> Callable[[Sequence[PickedExample]], Conditioning]:
    """A function that reads the inputs of picked samples from the cache, for the engine's batches. It touches nothing of ComfyUI."""

    def read(picks: Sequence[PickedExample]) -> Conditioning:
        samples = [unpack(cache.get(source.key(pick.view, pick.key, pick.caption))) for pick in picks]
        return {"samples": samples}

    return read
