"""ComfyUI's VAE and CLIP as encoders of the trainer, and their identities. Node thread only: both load models."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ....trainer.errors import ModelFileError
from ....trainer.families.common.family import Encoders
from ....trainer.storage.fingerprint import weights_identity
from ....trainer.types import EncoderIdentity
from ...sockets.names import ALONE
from ..backend.packing import is_plain, pack
from ..comfy_types import Clip, KeyPatched, ModelPatcher, Vae
from .edit_prompts import tokens_beside


class HostImages:
    """A ComfyUI VAE as image encoder: RGB pixels in [-1, 1] to raw latents, without the time axis of video VAEs."""

    def __init__(self, vae: Vae) -> None:
        self.vae = vae
        self.tiled = False

    def use_tiles(self) -> None:
        """Encode in tiles from now on: less memory, slightly different latents."""
        self.tiled = True

    @property
    def factor(self) -> int:
        """Pixels per latent row or column."""
        return int(self.vae.spacial_compression_encode())

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) of pixels (B, 3, H, W)."""
        video = getattr(self.vae, "latent_dim", 2) == 3
        raw = []
        for chunk_BCHW in torch.split(
            pixels_BCHW, 1 if video else len(pixels_BCHW)
        ):  # a video VAE takes a batch for frames of one video
            encode = self.vae.encode_tiled if self.tiled else self.vae.encode
            latents = encode(((chunk_BCHW + 1) / 2).movedim(1, -1).contiguous())
            raw.append(latents.squeeze(2) if latents.ndim == 5 else latents)
        return torch.cat(raw)

    def decode(self, raw_BCHW: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of raw latents (B, C, h, w)."""
        video = getattr(self.vae, "latent_dim", 2) == 3
        images = self.vae.decode(raw_BCHW.unsqueeze(2) if video else raw_BCHW)
        images = images.reshape(-1, *images.shape[-3:])
        return images.movedim(-1, 1) * 2 - 1


class HostText:
    """A ComfyUI CLIP as text encoder: the conditioning of CLIPTextEncode, or of the node for an edit model, as flat tensors."""

    def __init__(self, clip: Clip, reading: str = ALONE) -> None:
        """`reading`, as of `reading.chosen_reading`, is how prompts are read that have reference images."""
        self.clip, self.reading = clip, reading

    def encode(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """One item per prompt. Raises ModelFileError if the encoder gives something that cannot be stored."""
        return [self._item(self.clip.tokenize(prompt)) for prompt in prompts]

    def encode_beside(self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]) -> list[dict[str, Tensor]]:
        """The same for prompts with reference images, (3, H, W) in [-1, 1], sides multiples of 28 pixels."""
        pairs = zip(prompts, images, strict=True)
        return [self._item(tokens_beside(self.clip, self.reading, *pair)) for pair in pairs]

    def _item(self, tokens: object) -> dict[str, Tensor]:
        conditioning = self.clip.encode_from_tokens_scheduled(tokens)
        if len(conditioning) != 1:
            raise ModelFileError(
                "this CLIP gives several conditionings per prompt (a schedule or hooks): connect it without them"
            )
        cross_attention, extra = conditioning[0]
        kept = {name: value for name, value in extra.items() if isinstance(value, Tensor) or is_plain(value)}
        return pack({"cross_attn": cross_attention, **kept})


def host_encoders(vae: Vae, clip: Clip, reading: str = ALONE) -> Encoders:
    """A VAE and a CLIP as encoders of the trainer. `reading` is as of `edit_prompts.chosen_reading`."""
    return Encoders(HostText(clip, reading), HostImages(vae))


def encoder_identity(vae: Vae, clip: Clip, *, tiled: bool = False, text_pixels: int = 0) -> EncoderIdentity:
    """The identity of both encoders: a digest of original weights, patches and settings, equal after a restart or reload."""
    return EncoderIdentity(vae=vae_identity(vae, tiled=tiled), text=clip_identity(clip), text_pixels=text_pixels)


def vae_identity(vae: Vae, *, tiled: bool = False) -> str:
    """A digest of what decides the latents of a VAE: weights, patches and settings."""
    network = vae.first_stage_model
    options = {
        "class": type(network).__name__,
        "channels": int(vae.latent_channels),
        "dims": int(getattr(vae, "latent_dim", 2)),
        "ratio": str(vae.downscale_ratio) if isinstance(vae.downscale_ratio, int) else "several",
        **({"tiled": True} if tiled else {}),
    }
    patcher = getattr(vae, "patcher", None)
    if patcher is None:
        return weights_identity(network.state_dict().items(), options)
    return weights_identity(_with_patches(patcher), options)


def clip_identity(clip: Clip) -> str:
    """A digest of what decides the encodings of a CLIP: weights, patches and settings."""
    options = {
        "class": type(clip.cond_stage_model).__name__,
        "tokenizer": type(clip.tokenizer).__name__,
        "tokenizer_options": _sorted_text(getattr(clip, "tokenizer_options", {})),
        "layer": clip.layer_idx,
        "schedule": bool(getattr(clip, "use_clip_schedule", False)),
    }
    return weights_identity(_with_patches(clip.patcher), options)


def model_identity(patcher: ModelPatcher, objective_options: Mapping[str, object]) -> str:
    """A digest of a MODEL: original weights, patches, class, and how it samples."""
    options = {"class": type(patcher.model).__name__, **objective_options}
    return weights_identity(_with_patches(patcher), options)


def _with_patches(patcher: KeyPatched) -> Iterable[tuple[str, Tensor]]:
    """Original weights, and the strength and tensors of every patch, under names that contain the key of the weight."""
    for key, chain in patcher.get_key_patches().items():
        original, *patches = chain
        yield key, _plain(original[0] if isinstance(original, tuple) else original)
        for number, patch in enumerate(patches):
            yield f"{key}|patch{number}|strength", torch.tensor([float(patch[0]), float(patch[2])])
            for index, tensor in enumerate(_tensors_of(patch[1])):
                yield f"{key}|patch{number}|{index}", _plain(tensor)


def _plain(tensor: Tensor) -> Tensor:
    """The stored integers of a quantized tensor; any other tensor itself."""
    return tensor._qdata if hasattr(tensor, "_qdata") else tensor


def _tensors_of(value: object) -> list[Tensor]:
    """All tensors in a patch, which is a nested tuple or an adapter object with `weights`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, float) and math.isfinite(value):
        return [torch.tensor([value])]
    if hasattr(value, "weights"):
        return _tensors_of(list(value.weights))
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors_of(item)]
    return []


def _sorted_text(value: object) -> str:
    return str(sorted(value.items())) if isinstance(value, dict) else str(value)
