"""Pictures while training: prompts are encoded in the node; the thread samples with the engine and a shadow of the VAE."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....trainer.config.toml import digest
from ....trainer.data.cache.references import (
    encode_with_references,
    reference_latents,
    reference_placement,
    references_digest,
)
from ....trainer.data.cache.store import CODE_VERSION, Cache, text_key
from ....trainer.data.images.load import file_digest
from ....trainer.diffusion.guidance import CFG
from ....trainer.diffusion.sample import SampleSettings
from ....trainer.errors import ConfigError
from ....trainer.families.common.family import Encoders
from ....trainer.runs.previews import Samples
from ....trainer.runs.prompt_library import all_prompts
from ....trainer.runs.session import Session
from ....trainer.runs.trackers import check_tracker
from ....trainer.types import Geometry, Size
from ...sockets.names import AUTO
from ...sockets.values import ValidationValue
from ..backend.conditions import check_accepts_references, network_inputs
from ..backend.packing import unpack
from ..backend.shadow import build_shadow
from ..comfy_types import Clip, Vae
from ..encoding.edit_prompts import chosen_reading, text_pixels
from ..encoding.encoders import clip_identity, host_encoders, vae_identity
from ..encoding.reference_images import NAMES, kept_references
from ..paths import cache_folder, library_path
from .session import TrainRequest, latent_normaliser

_decoders: dict[str, "Decoder"] = {}
"""Shadows of VAEs by identity: a record on a wire holds no tensors, so they wait here for the run that uses them."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A VAE's decoder over shared weights: raw latents (1, C, h, w) to pixels in [0, 1], (3, H, W)."""

    network: torch.nn.Module
    process_output: Callable[[Tensor], Tensor]
    video: bool
    factor: int

    @torch.no_grad()
    def __call__(self, raw_BCHW: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        latents = raw_BCHW.to(weight.device, weight.dtype)
        pixels = self.network.decode(latents.unsqueeze(2) if self.video else latents)  # type: ignore[operator]
        pixels = self.process_output(pixels.float())
        return (
            pixels.reshape(-1, *pixels.shape[-2:])[:3].clamp(0, 1).cpu() if self.video else pixels[0].clamp(0, 1).cpu()
        )


def prepare_validation(vae: Vae, clip: Clip, prompts: str, options: Mapping[str, Any]) -> ValidationValue:
    """Encode the prompts and share the decoder. Raises ConfigError without a prompt, or without the library for the curves."""
    check_tracker(str(options.get("report", "none")))
    lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
    lines = tuple(all_prompts(lines, library_path(str(options.get("prompt_library", ""))), "prompt_library"))
    if not lines:
        raise ConfigError("validation.prompts is empty: write at least one prompt, or name a prompt_library")
    negative = str(options.get("negative", ""))
    sets = kept_references([options.get(name) for name in NAMES])
    reading = chosen_reading(str(options.get("edit_prompts", AUTO)), clip, max(map(len, sets), default=0))
    identity, text = vae_identity(vae), clip_identity(clip)
    size = (int(options.get("width", 512)), int(options.get("height", 512)))
    room = ValidationCache(
        cache=Cache(cache_folder()), encoders=host_encoders(vae, clip, reading), vae=identity, text=text
    )
    shown = tuple(room.shown([Path(path) for path in paths], size, text_pixels(reading)) for paths in sets)
    room.read({*lines, negative}, sets, text_pixels(reading))
    with torch.inference_mode(False):
        network = build_shadow(vae.first_stage_model, dict(vae.first_stage_model.state_dict()))
    _decoders[identity] = Decoder(
        network=network,
        process_output=vae.process_output,
        video=getattr(vae, "latent_dim", 2) == 3,
        factor=int(vae.spacial_compression_encode()),
    )
    defaults = {
        "every": 0,
        "seed": 0,
        "steps": 20,
        "cfg": 4.0,
        "width": 512,
        "height": 512,
        "measure_every": 0,
        "patience": 0,
        "report": "none",
    }
    known = {name: options[name] for name in defaults if name in options}
    settings: dict[str, Any] = {**defaults, **known}
    return ValidationValue(prompts=lines, negative=negative, vae=identity, text=text, references=shown, **settings)


@dataclass(frozen=True, kw_only=True)
class ValidationCache:
    """Where prompts and reference images of validation pictures are kept until the run begins."""

    cache: Cache
    encoders: Encoders
    vae: str
    text: str
    """Identities of the encoders."""

    def shown(self, paths: Sequence[Path], size: Size, pixels: int) -> tuple[str, tuple[str, ...]]:
        """A set of reference images as `ValidationValue.references` has it; their latents are in the cache afterwards."""
        keys = []
        for path in paths:
            target = reference_placement(path, size).target
            key = digest(["shown latents", CODE_VERSION, file_digest(path), target, self.vae])
            if self.cache.missing([key]):
                latents_CHW = reference_latents(self.encoders, path, reference_placement(path, size))
                self.cache.put({key: {"latents": latents_CHW}})
            keys.append(key)
        return self._seen(paths, pixels), tuple(keys)

    def _seen(self, paths: Sequence[Path], pixels: int) -> str:
        return references_digest([file_digest(path) for path in paths], pixels) if pixels else ""

    def read(self, prompts: Collection[str], sets: Sequence[Sequence[str]], pixels: int) -> None:
        """Every prompt is in the cache afterwards: beside each set, or alone where nothing is seen."""
        for named in (sets if pixels else ()) or ((),):
            paths = [Path(path) for path in named]
            seen = self._seen(paths, pixels) if paths else ""
            for prompt in prompts:
                key = text_key(prompt, self.text, seen)
                if self.cache.missing([key]):
                    made = (
                        encode_with_references(self.encoders, prompt, paths, pixels)
                        if seen
                        else self.encoders.text.encode([prompt])[0]
                    )
                    self.cache.put({key: made})


def add_samples(session: Session, patcher: Any, request: TrainRequest) -> None:
    """Give the session its previews if the graph asks for them. Node thread: calls the model's `extra_conds`."""
    value = request.validation
    if value is None:
        return
    decoder = _decoders.get(value.vae)
    if decoder is None:
        raise ConfigError("the VAE of LoomValidation is no longer loaded: queue the graph again")
    denoiser: Any = session.denoiser
    model, size = patcher.model, (value.width, value.height)
    channels = int(model.latent_format.latent_channels)
    geometry = Geometry.whole(size)
    cache, factor = Cache(cache_folder()), decoder.factor

    def inputs(prompt: str, seen: str, keys: Sequence[str]) -> dict[str, Any]:
        text = unpack(cache.get(text_key(prompt, value.text, seen)))
        latents = [cache.get(key)["latents"].unsqueeze(0) for key in keys]
        given = (text, geometry, denoiser.settings.conditions, factor, channels, latents)
        if latents:
            check_accepts_references(model, *given)
        made = network_inputs(model, *given)
        return {name: _normal(item) for name, item in made.items()}

    to_raw, made = latent_normaliser(model, inverse=True), decoder
    shown = value.references or (("", ()),)
    pairs = [(inputs(prompt, *one), inputs(value.negative, *one)) for prompt, one in product(value.prompts, shown)]
    session.previews = Samples(
        every=value.every,
        folder=session.folder.path / "samples",
        denoiser=denoiser,
        decode=lambda latents: made(to_raw(latents)),
        conditions=[({"samples": [positive]}, {"samples": [negative]}) for positive, negative in pairs],
        settings=SampleSettings(steps=value.steps, sampler="euler", scheduler="normal", guidance=CFG(value.cfg)),
        seed=value.seed,
        shape=(channels, value.height // decoder.factor, value.width // decoder.factor),
        device=torch.device(patcher.load_device),
    )


def _normal(value: Any) -> Any:
    """Inference tensors as normal ones."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.clone()
    return [_normal(item) for item in value] if isinstance(value, list) else value
