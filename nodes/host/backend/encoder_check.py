"""Whether the VAE and the text encoder that filled a cache are those of a model, before anything is loaded for training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ....trainer.data.cache.keys import prompt_key, views
from ....trainer.data.cache.store import Cache
from ....trainer.errors import ConfigError
from ....trainer.types import Example
from ...sockets.values import CacheValue
from ..comfy_types import BaseModel
from .packing import unpack

READS_TEXT_DIRECTLY = ("BaseModel", "SDXL", "SD3", "Flux")
"""Classes of ComfyUI whose configuration says how wide the encoded text must be."""


def check_encoders(model: BaseModel, value: CacheValue, examples: Sequence[Example]) -> None:
    """Raise ConfigError that names the socket of LoomCache with the wrong VAE or CLIP. One image of the cache is enough."""
    cache, example = Cache(Path(value.folder)), examples[0]
    view = views(example)[0]
    image, text = view.key(value.vae), prompt_key(view, example.captions[0] if example.captions else "", value.identity)
    if not cache.missing([image]):
        check_latents(model, cache.get(image)["latents"])
    if not cache.missing([text]):
        check_text(model, unpack(cache.get(text)).get("cross_attn"))


def check_latents(model: BaseModel, latents: Tensor) -> None:
    """Raise ConfigError for latents (C, h, w) of another number of channels than the model's."""
    wanted = int(model.latent_format.latent_channels)
    if latents.shape[0] != wanted:
        raise ConfigError(
            f"LoomCache: vae makes latents with {latents.shape[0]} channels, but the model reads {wanted}: link the VAE that belongs to the model"
        )


def check_text(model: BaseModel, encoded: object) -> None:
    """Raise ConfigError for an encoded text (1, tokens, width) of another width than the model reads, where that is known."""
    wanted = _text_width(model)
    if wanted and isinstance(encoded, Tensor) and encoded.shape[-1] != wanted:
        raise ConfigError(
            f"LoomCache: clip makes texts {encoded.shape[-1]} numbers wide, but the model reads {wanted}: link the CLIP that belongs to the model"
        )


def _text_width(model: BaseModel) -> int:
    """Width of the encoded text; 0 if the model's configuration does not say it."""
    if type(model).__name__ not in READS_TEXT_DIRECTLY:
        return 0
    config: dict[str, Any] = getattr(getattr(model, "model_config", None), "unet_config", None) or {}
    nested = (config.get("context_embedder_config") or {}).get("params", {}).get("in_features")
    found = config.get("context_dim") or config.get("context_in_dim") or nested
    return found if isinstance(found, int) else 0
