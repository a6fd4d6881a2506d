"""Whether the VAE and the text encoder that filled a cache are those of a model, before anything is loaded for training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ....trainer.data.cache.keys import prompt_key, views
from ....trainer.data.cache.store import Cache
from ....trainer.errors import ConfigError
from ....trainer.types import Example
from ...sockets.values import CacheValue
from ..comfy_types import BaseModel, Vae
from .packing import unpack

READS_TEXT_DIRECTLY = ("BaseModel", "SDXL", "SD3", "Flux")
"""Classes of ComfyUI whose configuration says how wide the encoded text must be."""

CACHE, VALIDATION = "LoomCache", "LoomValidation"
"""Nodes whose VAE and CLIP are looked at."""
AXES = {1: "sounds", 2: "images", 3: "videos"}
"""What latents are of, by their number of axes besides the channels."""


def check_encoders(model: BaseModel, value: CacheValue, examples: Sequence[Example]) -> None:
    """Raise ConfigError that names the socket of LoomCache with the wrong VAE or CLIP. One image of the cache is enough."""
    cache, example = Cache(Path(value.folder)), examples[0]
    view = views(example)[0]
    image, text = view.key(value.vae), prompt_key(view, example.captions[0] if example.captions else "", value.identity)
    if not cache.missing([image]):
        check_latents(model, cache.get(image)["latents"])
    if not cache.missing([text]):
        check_item(model, cache.get(text))


def check_vae(model: BaseModel, vae: Vae, node: str = CACHE) -> None:
    """The same of a VAE before it has encoded anything; one of videos with a model of images, or the other way round, is wrong too.

    `node` is where it is linked.
    """
    check_channels(model, int(vae.latent_channels), node)
    made, read = getattr(vae, "latent_dim", None), getattr(model.latent_format, "latent_dimensions", None)
    if made is not None and read is not None and made != read:
        made, read = (AXES.get(number, f"{number} axes") for number in (made, read))
        raise ConfigError(
            f"{node}: vae makes latents of {made}, but the model reads those of {read}: link the VAE that belongs to the model"
        )


def check_latents(model: BaseModel, latents: Tensor) -> None:
    """Raise ConfigError for latents (C, h, w) of another number of channels than the model's."""
    check_channels(model, latents.shape[0])


def check_channels(model: BaseModel, channels: int, node: str = CACHE) -> None:
    """Raise ConfigError for latents of another number of channels than the model's."""
    wanted = int(model.latent_format.latent_channels)
    if channels != wanted:
        raise ConfigError(
            f"{node}: vae makes latents with {channels} channels, but the model reads {wanted}: link the VAE that belongs to the model"
        )


def check_item(model: BaseModel, item: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for a stored text of another width than the model reads, of all its tokens or of the whole text."""
    check_unpacked(model, unpack(item))


def check_unpacked(model: BaseModel, encoding: Mapping[str, object], node: str = CACHE) -> None:
    """The same for an encoding as ComfyUI has it, whose CLIP is linked to `node`."""
    check_text(model, encoding.get("cross_attn"), node)
    _check_width(encoding.get("pooled_output"), _pooled_width(model), "summaries of texts", node)


def check_text(model: BaseModel, encoded: object, node: str = CACHE) -> None:
    """Raise ConfigError for an encoded text (1, tokens, width) of another width than the model reads, where that is known."""
    _check_width(encoded, text_width(model), "texts", node)


def _check_width(encoded: object, wanted: int, what: str, node: str) -> None:
    if wanted and isinstance(encoded, Tensor) and encoded.shape[-1] != wanted:
        raise ConfigError(
            f"{node}: clip makes {what} {encoded.shape[-1]} numbers wide, but the model reads {wanted}: link the CLIP that belongs to the model"
        )


def text_width(model: BaseModel) -> int:
    """Width of the encoded text that a model reads; 0 if the model's configuration does not say it."""
    config = _config(model)
    nested = (config.get("context_embedder_config") or {}).get("params", {}).get("in_features")
    found = config.get("context_dim") or config.get("context_in_dim") or nested
    return found if isinstance(found, int) else 0


def _pooled_width(model: BaseModel) -> int:
    """Width of the pooled text; 0 if the model reads none, or its configuration does not say it."""
    config = _config(model)
    sizes = 6 * 256 if type(model).__name__ == "SDXL" else 0  # SDXL reads the image's sizes beside it
    found = config.get("vec_in_dim") or config.get("adm_in_channels")
    return max(found - sizes, 0) if isinstance(found, int) else 0


def _config(model: BaseModel) -> dict[str, Any]:
    if type(model).__name__ not in READS_TEXT_DIRECTLY:
        return {}
    return getattr(getattr(model, "model_config", None), "unet_config", None) or {}
