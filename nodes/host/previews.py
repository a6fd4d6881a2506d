"""Pictures while training: prompts are encoded in the node; the thread samples with the engine and a shadow of the VAE."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...trainer.data.cache import Cache, text_key
from ...trainer.diffusion.guidance import CFG
from ...trainer.errors import ConfigError
from ...trainer.prompt_library import all_prompts
from ...trainer.records import Geometry
from ...trainer.sample import SampleSettings
from ...trainer.session import Session
from ...trainer.trackers import check_tracker
from ...trainer.validation import Pictures
from ..values import ValidationValue
from .conditions import ConditionSource, network_inputs
from .encode import HostText, clip_identity, vae_identity
from .packing import unpack
from .paths import cache_folder, library_path
from .shadow import build_shadow
from .training import TrainRequest, latent_normaliser

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


def prepare_validation(vae: Any, clip: Any, prompts: str, options: Mapping[str, Any]) -> ValidationValue:
    """Encode the prompts and share the decoder. Raises ConfigError without a prompt, or without the library for the curves."""
    check_tracker(str(options.get("report", "none")))
    lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
    lines = tuple(all_prompts(lines, library_path(str(options.get("prompt_library", ""))), "prompt_library"))
    if not lines:
        raise ConfigError("validation.prompts is empty: write at least one prompt, or name a prompt_library")
    negative = str(options.get("negative", ""))
    cache, text = Cache(cache_folder()), clip_identity(clip)
    missing = [prompt for prompt in {*lines, negative} if cache.missing([text_key(prompt, text)])]
    if missing:
        encoded = HostText(clip).encode(missing)
        cache.put({text_key(prompt, text): item for prompt, item in zip(missing, encoded, strict=True)})
    identity = vae_identity(vae)
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
    return ValidationValue(prompts=lines, negative=negative, vae=identity, text=text, **{**defaults, **known})


def add_previews(session: Session, patcher: Any, request: TrainRequest) -> None:
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
    source = ConditionSource(
        identity="", text_identity=value.text, values=denoiser.settings.conditions, factor=decoder.factor
    )
    cache = Cache(cache_folder())

    def inputs(prompt: str) -> dict[str, Any]:
        made = network_inputs(model, unpack(cache.get(text_key(prompt, value.text))), geometry, source, channels)
        return {name: _normal(item) for name, item in made.items()}

    to_raw, made = latent_normaliser(model, inverse=True), decoder
    pairs = [(inputs(prompt), inputs(value.negative)) for prompt in value.prompts]
    session.previews = Pictures(
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
