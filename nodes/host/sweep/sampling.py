"""Renders a cell of a sweep with ComfyUI's sampler. Node thread only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ....trainer.config.run import GuidanceConfig
from ....trainer.data.cache.references import reference_latents, reference_placement, vision_placement
from ....trainer.data.images.load import load_pixels
from ....trainer.diffusion.sample import make_guidance
from ....trainer.families.common.lora_names import is_text_encoder
from ....trainer.runs.reference_images import Reference
from ....trainer.types import Cell, Geometry, Size
from ..backend.conditions import check_accepts_references
from ..comfy_types import BaseModel, Clip, ComfyConditioning, ModelPatcher, Vae
from ..encoding.edit_prompts import text_pixels, tokens_beside
from ..encoding.encoders import host_encoders
from .apg import add_guidance, add_method
from .skip_layers import add_skip_layers


@dataclass(frozen=True, kw_only=True)
class ComfyRenderer:
    """What all cells share: encoders, encoded prompts and reference images."""

    vae: Vae
    clip: Clip
    reading: str
    """How prompts with reference images are encoded, as of `edit_prompts.chosen_reading`."""
    references: Mapping[str, tuple[Path, ...]]
    """{digest: reference images that are used together}."""
    model_guidance: float
    factor: int
    """Pixels per latent row or column."""
    _texts: dict[tuple[str, str], ComfyConditioning] = field(default_factory=dict)
    _latents: dict[tuple[str, Size], list[Tensor]] = field(default_factory=dict)

    def prepare(self, cells: Sequence[Cell], model: ModelPatcher) -> None:
        """Encode every prompt and reference image of these cells, once. Raises ConfigError for references that the MODEL ignores."""
        for cell in cells:
            for prompt in (cell.prompt, cell.negative):
                self._encoded_once(cell, prompt)
        for cell in cells:  # after all texts: the text encoder and the VAE may not fit on the device together
            if cell.reference:
                self._reference_latents(cell)
        if first := next((cell for cell in cells if cell.reference), None):
            self._check(first, model.model)

    def reading_with(self, clip: Clip) -> "ComfyRenderer":
        """The same with another CLIP."""
        return self if clip is self.clip else replace(self, clip=clip, _texts={})

    def _check(self, cell: Cell, model: BaseModel) -> None:
        [[tensor, extra], *_] = self.conditioning(cell, cell.prompt)
        text = {"cross_attn": tensor, **extra}
        latents = [one.squeeze(2) if one.ndim == 5 else one for one in text.pop("reference_latents")]
        size: Size = tuple(cell.settings["size"])
        check_accepts_references(model, text, Geometry.whole(size), {}, self.factor, latents[0].shape[1], latents)

    def conditioning(self, cell: Cell, prompt: str) -> ComfyConditioning:
        """The CONDITIONING that ComfyUI's nodes make of a prompt, the reference images and the guidance value."""
        more = {"reference_latents": self._reference_latents(cell)} if cell.reference else {}
        encoded = self._encoded_once(cell, prompt)
        return [[tensor, {**extra, "guidance": self.model_guidance, **more}] for tensor, extra in encoded]

    def _encoded_once(self, cell: Cell, prompt: str) -> ComfyConditioning:
        reference = cell.settings.get("reference", "")
        if (prompt, reference) not in self._texts:
            self._texts[prompt, reference] = self._encoded(prompt, self.references.get(reference, ()))
        return self._texts[prompt, reference]

    def _encoded(self, prompt: str, paths: Sequence[Path]) -> ComfyConditioning:
        pixels = text_pixels(self.reading)
        if not paths or not pixels:
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        images = [load_pixels(path, vision_placement(path, pixels)) for path in paths]
        tokens = tokens_beside(self.clip, self.reading, prompt, images)
        return self.clip.encode_from_tokens_scheduled(tokens)

    def _reference_latents(self, cell: Cell) -> list[Tensor]:
        """Raw latents of the reference images, as a VAEEncode node gives them."""
        reference, size = cell.settings["reference"], tuple(cell.settings["size"])
        if (reference, size) not in self._latents:
            video = getattr(self.vae, "latent_dim", 2) == 3
            encoders = host_encoders(self.vae, self.clip)
            made = [
                reference_latents(encoders, p, reference_placement(p, size)).unsqueeze(0)
                for p in self.references[reference]
            ]
            self._latents[reference, size] = [latents.unsqueeze(2) if video else latents for latents in made]
        return self._latents[reference, size]


def open_renderer(
    vae: Vae, clip: Clip, reading: str, references: Sequence[Reference], model_guidance: float
) -> ComfyRenderer:
    """A renderer for the cells of one sweep. `model_guidance` is the guidance value of guidance-distilled models."""
    return ComfyRenderer(
        vae=vae,
        clip=clip,
        reading=reading,
        references={reference.digest: reference.paths for reference in references},
        model_guidance=model_guidance,
        factor=int(vae.spacial_compression_encode()),
    )


def changes_text(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a LoRA file has modules of text encoders."""
    return any(is_text_encoder(key) for key in tensors)


def with_lora(
    model: ModelPatcher, clip: Clip, tensors: Mapping[str, Tensor], strength: float
) -> tuple[ModelPatcher, Clip]:
    """Clones of the MODEL and, for a LoRA on text encoders too, of the CLIP with a LoRA, as LoraLoader makes them."""
    import comfy.sd

    both = clip if changes_text(tensors) else None
    patched, read = comfy.sd.load_lora_for_models(model, both, dict(tensors), strength, strength if both else 0)
    return patched, read or clip


def with_guidance(model: ModelPatcher, guidance: GuidanceConfig) -> ModelPatcher:
    """The MODEL, or a clone of it with APG, rescaling or skip-layer guidance. Raises ConfigError."""
    model = add_skip_layers(model, guidance)
    if guidance.method == "apg":
        return add_guidance(model, guidance.eta, guidance.norm_threshold, guidance.momentum, guidance.rescale)
    if guidance.method != "cfg":
        return add_method(model, make_guidance(guidance))
    return add_guidance(model, 1.0, 0.0, 0.0, guidance.rescale) if guidance.rescale else model


def render(model: ModelPatcher, renderer: ComfyRenderer, cell: Cell, scale: float) -> Tensor:
    """The image of a cell, (3, H, W) in [-1, 1]. `scale` is the guidance scale."""
    import comfy.sample

    recipe = cell.settings
    latents = empty_latents(model, renderer.vae, recipe["size"], renderer.factor)
    made = comfy.sample.sample(
        model, comfy.sample.prepare_noise(latents, cell.seed), recipe["steps"], scale, recipe["sampler"],
        recipe["scheduler"], renderer.conditioning(cell, cell.prompt), renderer.conditioning(cell, cell.negative), latents,
        seed=cell.seed, disable_pbar=True,
    )  # fmt: skip
    pixels: Tensor = renderer.vae.decode(made)
    return pixels.reshape(-1, *pixels.shape[-3:])[0].movedim(-1, 0).float().cpu() * 2 - 1


def empty_latents(model: ModelPatcher, vae: Vae, size: tuple[int, int], factor: int) -> Tensor:
    """Zeros as EmptyLatentImage gives them, in the model's own channels and dimensions."""
    latent_format = model.get_model_object("latent_format")
    width, height = size
    shape = [1, int(latent_format.latent_channels), height // factor, width // factor]
    if getattr(latent_format, "latent_dimensions", 2) == 3:
        shape.insert(2, 1)
    return torch.zeros(shape)
