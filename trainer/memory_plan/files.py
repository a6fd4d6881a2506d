"""The plan of a run of the command line: network, encoders and images by their files' headers."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..base_model import Base
from ..config.network import WHOLE
from ..config.run import TrainConfig
from ..data.cache.keys import views
from ..data.cache.references import reference_placement
from ..data.sets.dataset import Dataset
from ..diffusion.denoiser import Denoiser
from ..families.common.encoders import stays_whole
from ..families.common.family import Encoders, Text
from ..lora.base_lora import BaseLora, always, lay_base_loras
from ..lora.checkpointing import checkpoint
from ..training.loss_settings import loss_settings, noise_levels
from ..training.text_encoders import with_text
from ..types import Conditioning, Example, Geometry, Size, named_references
from ..weights.changes import laid_tensors
from ..weights.devices import compute_dtype
from .base_sizes import BaseSizes, base_sizes, pack_on_shapes, quantized_bytes, stand_for_quantized, tensor_bytes
from .card import card_of, matrix_rate
from .plan import MemoryPlan
from .planner import Around, Planner, Way
from .rehearsal import Rehearsal, Step, most_live, rehearse
from .shapes_only import META, shapes_only

VISION_PATCH = 28
"""Pixels of a side that one token of a vision language model covers."""
LATENT_BYTES = 4
RGB = 3
OURS = __name__.rpartition(".memory_plan")[0]


@dataclass
class FilesRun:
    """A run of the command line on shapes."""

    base: Base
    config: TrainConfig
    dataset: Dataset
    targets: Sequence[str]
    base_loras: Sequence[BaseLora] = ()
    preview: Base | None = None
    """Another model that makes the samples."""
    is_cached: bool = False
    """Nothing is left to encode before it."""

    @property
    def has_samples(self) -> bool:
        """Whether samples are made while training."""
        return bool(self.config.validation.prompts or self.config.validation.prompt_library)

    @property
    def sample_size(self) -> Size:
        """(width, height) of samples in pixels."""
        asked, usual = self.config.validation, self.config.data.resolution
        return asked.width or usual, asked.height or usual

    @property
    def arithmetic(self) -> torch.dtype:
        """dtype of the forward pass."""
        return compute_dtype(self.config.training.precision, self.base.device)

    def sizes(self, quantize: str) -> BaseSizes:
        """Of the denoiser as it will be stored and quantized."""
        module = self._structure(quantize).module
        return base_sizes(module, self._packed(module, quantize))

    def step(self, way: Way, image: Size) -> Rehearsal:
        """The network is built for it and thrown away: a step leaves an adapter in it."""
        config, settings = self.config, self.base.settings
        denoiser = self._structure(way.quantize)
        packing = self._packed(denoiser.module, way.quantize)
        checkpoint(denoiser.module, way.memory)
        if packing != "none":
            stand_for_quantized(denoiser.module)
        lay_base_loras(denoiser.module, self.base_loras)
        if config.text.is_trained:
            denoiser = with_text(denoiser, self.base, self.encoders.text, config.objective.guidance_scale)  # type: ignore[arg-type]
        levels = noise_levels(config.objective, denoiser.objective, settings.training_shift)
        step = Step(
            targets=self.targets,
            network=config.network,
            optimizer=config.optimizer,
            loss=loss_settings(config.objective, levels),
            compute_dtype=self.arithmetic,
            accumulates=config.training.gradient_accumulation_steps > 1 or way.batch_size < config.training.batch_size,
            preserves=self.dataset.preserves,
        )
        return rehearse(denoiser, step, self._latents(way.batch_size, image), self._conditioning(way.batch_size, image))

    def _packed(self, module: torch.nn.Module, quantize: str) -> str:
        return pack_on_shapes(module, quantize, self.config.model.matmul, self.arithmetic)

    def _structure(self, quantize: str) -> Denoiser:
        model = replace(self.config.model, quantize=quantize, matmul="off")  # type: ignore[arg-type]
        return self.base.structure(model, self.config.training.precision)

    @cached_property
    def encoders(self) -> Encoders:
        """Text encoders and VAE without weights."""
        return self.base.load_encoders(tiled=self.config.memory.vae_tiling, structure=True)

    @cached_property
    def longest(self) -> str:
        """The longest caption."""
        return max(self.dataset.captions, key=len)

    @cached_property
    def text(self) -> Text:
        """What the encoders make of the longest caption, as shapes."""
        with torch.no_grad(), shapes_only():
            [text] = self.encoders.text.encode([self.longest])
        seen = self._with_references.references if self._with_references and self.base.settings.text_pixels else ()
        if seen:
            more = len(seen) * (self.base.settings.text_pixels // VISION_PATCH) ** 2
            text = {**text, "text": torch.cat([text["text"], text["text"].new_empty(more, text["text"].shape[-1])])}
        return text

    @cached_property
    def _with_references(self) -> Example | None:
        return next((example for example in self.dataset.examples if example.references), None)

    def _latents(self, batch_size: int, image: Size) -> tuple[int, ...]:
        factor, (width, height) = self.encoders.image.factor, image
        return batch_size, self.base.family.latent_space.channels, height // factor, width // factor

    def _conditioning(self, batch_size: int, image: Size) -> Conditioning:
        places = [Geometry.whole(image)] * batch_size
        if self.config.text.is_trained:
            return {"captions": [self.longest] * batch_size, "geometries": places}
        with shapes_only():
            made = self.base.family.condition([self.text] * batch_size, places, self.config.objective.guidance_scale)
        return {**made, **self._references(batch_size, image)}

    def _references(self, batch_size: int, image: Size) -> Conditioning:
        example = self._with_references
        if example is None:
            return {}
        sizes = [reference_placement(path, image).target for path in example.references]
        return named_references([torch.empty(self._latents(batch_size, size), device=META) for size in sizes])

    def around(self, images: dict[Size, int]) -> Around:
        """Encoders while caching and while training, samples, the cache."""
        text, vae = _bytes_of(self.encoders.text, self.config.text.quantize), _bytes_of(self.encoders.image)
        largest = max(images, key=lambda image: image[0] * image[1])
        online, trained = self.config.memory.cache == "online", self.config.text.is_trained
        kept = (text if online or trained else 0) + (vae if online or self.has_samples else 0) + self._other_model()
        is_over = self.is_cached and not kept
        caching = 0 if is_over else text + vae + max(self._encoding(largest), self._reading())
        return Around(
            encoders=kept,
            caching=caching,
            lighter=partial(self._lighter, largest),
            sampling=self._sampling() if self.has_samples else 0,
            cache=self._cache(images),
        )

    def _lighter(self, largest: Size) -> list[tuple[str, int]]:
        """What encoding would take with other settings."""
        config, base = self.config, self.base
        tiled = replace(config, memory=replace(config.memory, vae_tiling=True, vae_batch_size=1))
        choices = [("memory.vae_batch_size = 1 and memory.vae_tiling = true", tiled, base)]
        if not base.settings.text_parts and base.encoder_quantize == "none":
            quantized = replace(config, text=replace(config.text, quantize="int8"))
            choices.append(('text.quantize = "int8"', quantized, replace(base, encoder_quantize="int8")))
        found = []
        for setting, changed, other in choices:
            run = replace(self, config=changed, base=other, is_cached=False)
            found.append((setting, run.around({largest: 1}).caching))
        return found

    def _encoding(self, image: Size) -> int:
        """Bytes that the VAE needs for `memory.vae_batch_size` images, beside its weights."""
        width, height = image
        pixels_BCHW = torch.empty(self.config.memory.vae_batch_size, RGB, height, width, device=META)
        return _most(self.encoders.image, lambda: self.encoders.image.encode(pixels_BCHW))

    def _reading(self) -> int:
        """Bytes that the text encoders need for a caption, beside their weights."""
        return _most(self.encoders.text, lambda: self.encoders.text.encode([self.longest]))

    def _sampling(self) -> int:
        """Bytes that a sample needs beside what training holds: a prediction of the network, or the VAE."""
        raw_BCHW = torch.empty(self._latents(1, self.sample_size), device=META)
        decoding = _most(self.encoders.image, lambda: self.encoders.image.decode(raw_BCHW))
        if self.config.text.is_trained:
            return decoding
        denoiser = self._structure(self.config.model.packing)
        lay_base_loras(denoiser.module, self.base_loras)
        conditioning = self._conditioning(1, self.sample_size)
        sigma_B = torch.empty(1, device=META)
        predicting = most_live(denoiser.module, lambda: denoiser.predict(raw_BCHW, sigma_B, conditioning))
        return max(decoding, predicting)

    def _other_model(self) -> int:
        """Bytes of the network that samples are made with, where it is another one."""
        if self.preview is None:
            return 0
        model = replace(self.config.model, quantize="none", matmul="off")
        network = self.preview.structure(model, self.config.training.precision).module
        lay_base_loras(network, always(self.base_loras))
        below = sum(map(tensor_bytes, laid_tensors(network)))
        return base_sizes(network, self.config.model.packing).total + below

    def _cache(self, images: dict[Size, int]) -> int:
        """Bytes of latents and texts on disk."""
        if self.config.memory.cache == "online":
            return 0
        each = sum(len(views(example)) for example in self.dataset.examples) / max(1, len(self.dataset.examples))
        latents = sum(count * math.prod(self._latents(1, image)) for image, count in images.items()) * LATENT_BYTES
        text = sum(tensor_bytes(tensor) for tensor in self.text.values())
        return round(latents * each) + len(self.dataset.captions) * text


def plan_files(run: FilesRun, taken: Sequence[float] = (), *, every_bucket: bool = False) -> MemoryPlan:
    """The plan of a run; `taken` are seconds of its earlier steps. Raises ConfigError for one that the device has no room for."""
    config = run.config
    images = dict(Counter(example.geometry.target for example in run.dataset.training))
    whole = config.network.kind == WHOLE
    memory = replace(config.memory, base="resident") if whole else config.memory
    planner = Planner(
        run=run,
        card=card_of(run.base.device),
        training=config.training,
        optimizer=config.optimizer,
        way=Way(
            memory=memory,
            batch_size=config.training.batch_size,
            quantize=config.model.packing,
            optimizer=config.optimizer.name,
        ),
        images=images,
        around=run.around(images),
        rate=matrix_rate(run.base.device, run.arithmetic),
        taken=taken,
        whole=whole,
    )
    return planner.plan(every_bucket=every_bucket)


def _bytes_of(part: object, quantize: str = "none") -> int:
    """Weights of the networks that an encoder consists of; `quantize` is what is done to them when they are loaded."""
    return sum(
        _size(tensor, quantize if id(tensor) in packed else "none")
        for module in _networks(part)
        for packed in [_packed(module, quantize)]
        for tensor in [*module.parameters(), *module.buffers()]
    )


def _packed(module: torch.nn.Module, quantize: str) -> set[int]:
    """Which tensors of a text encoder are quantized, by their ids."""
    if quantize == "none" or stays_whole(type(module)):
        return set()
    return {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Linear)}


def _size(tensor: Tensor, quantize: str) -> int:
    return tensor_bytes(tensor) if quantize == "none" else quantized_bytes(tensor, quantize)


def _most(part: object, call: Callable[[], object]) -> int:
    return most_live(torch.nn.ModuleList(_networks(part)), call)


def _networks(part: object) -> list[torch.nn.Module]:
    """The networks that an encoder, or an encoder that it holds, has among its attributes."""
    if isinstance(part, torch.nn.Module):
        return [part]
    inside = list(part) if isinstance(part, list | tuple) else []
    if type(part).__module__.startswith(OURS):
        inside = list(vars(part).values())
    return [network for value in inside for network in _networks(value)]
