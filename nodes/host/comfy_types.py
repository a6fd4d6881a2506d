"""What LoRA Loom uses of ComfyUI's objects, as types: MODEL, CLIP, VAE, CLIP_VISION and what lies inside a MODEL.

ComfyUI passes these objects from node to node without naming their types. Each Protocol lists the members that the folder
`nodes/host` uses, under ComfyUI's own names, and nothing else. A member that only some versions of ComfyUI have is left out
and read with `getattr` and a default where it is used. This module imports nothing of ComfyUI.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, overload

import torch
from torch import Tensor, nn

ComfyConditioning: TypeAlias = list[list[Any]]
"""A CONDITIONING: [[cross attention (B, tokens, width), {"pooled_output": …, other entries}], …]."""

KeyPatches: TypeAlias = dict[str, list[tuple[Any, ...]]]
"""What `get_key_patches` returns: {key of the state dict: [(original weight, conversion), patch, …]}. A patch is (strength, its tensors,
strength of the original, offset, function)."""


class GraphNode(TypedDict):
    """A node of a queued graph (ComfyUI's API format). An input is a value, or a link [node id, output number]."""

    class_type: str
    inputs: dict[str, object]


Graph: TypeAlias = Mapping[str, GraphNode]
"""A queued graph, {node id: node}: the hidden input PROMPT."""


class LatentFormat(Protocol):
    """How a MODEL scales the latents of its VAE. `latent_dimensions` (3 for video) is not in every version."""

    latent_channels: int

    def process_in(self, latent: Tensor) -> Tensor:
        """Latents of the VAE as the network takes them."""

    def process_out(self, latent: Tensor) -> Tensor:
        """Latents of the network as the VAE takes them."""


class ModelSampling(Protocol):
    """The noise schedule of a MODEL and what its network predicts; noise levels are in units of sigma."""

    sigmas: Tensor
    """(N,), rising."""

    @property
    def sigma_max(self) -> Tensor | float:
        """The largest noise level."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network takes for a noise level."""

    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level of what the network takes."""

    def percent_to_sigma(self, percent: float) -> float:
        """The noise level at a share of the sampling schedule, from pure noise on."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        """Noisy latents. May change its arguments."""

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """Noisy latents, scaled as the network takes them."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """Denoised latents from the network's output."""


class Cond(Protocol):
    """One argument of a network, as `extra_conds` makes it: a tensor with a batch of 1, a list of such, or a constant."""

    cond: Any


class BaseModel(Protocol):
    """The network of a MODEL with what surrounds it (comfy.model_base.BaseModel)."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Its tensors by their names."""
        ...

    @property
    def diffusion_model(self) -> nn.Module:
        """The network alone."""

    @property
    def latent_format(self) -> LatentFormat:
        """How it scales latents."""

    @property
    def manual_cast_dtype(self) -> torch.dtype | None:
        """The dtype it computes in, where that is not the dtype of its weights."""

    def get_dtype(self) -> torch.dtype:
        """The dtype of its weights."""

    def extra_conds(self, **conditioning: object) -> dict[str, Cond]:
        """The network's arguments for a conditioning, besides latents and timestep."""


class ModelOptions(TypedDict, total=False):
    """Functions and settings for the sampler that other nodes have added to a MODEL."""

    transformer_options: dict[str, object]
    model_function_wrapper: Callable[..., Tensor]


class ModelPatcher(Protocol):
    """A MODEL: a network with patches that are applied when ComfyUI loads it (comfy.model_patcher.ModelPatcher)."""

    load_device: torch.device
    model_options: ModelOptions
    patches: dict[str, list[tuple[Any, ...]]]

    @property
    def model(self) -> BaseModel:
        """The network with what surrounds it."""

    @overload
    def get_model_object(self, name: Literal["model_sampling"]) -> ModelSampling: ...
    @overload
    def get_model_object(self, name: Literal["latent_format"]) -> LatentFormat: ...

    def get_key_patches(self, filter_prefix: str | None = None) -> KeyPatches:
        """Original weights and their patches."""

    def model_size(self) -> int:
        """Bytes of the network's weights."""

    def clone(self) -> "ModelPatcher":
        """The same network with patches of its own."""

    def set_model_sampler_post_cfg_function(self, function: Callable[[dict[str, Any]], Tensor]) -> None:
        """Calls the function on what classifier-free guidance gives."""

    def set_model_sampler_pre_cfg_function(
        self, pre_cfg_function: Callable[["PreCfgArguments"], list[Tensor]]
    ) -> object:
        """Add a function that is called with the predictions of each step, before guidance combines them."""


class PreCfgArguments(TypedDict):
    """What a function before guidance is called with. Predictions are denoised latents."""

    conds_out: list[Tensor]
    """The prediction of the prompt, that of the negative prompt, others."""
    conds: list[object]
    """Their conditionings; None for one that was skipped."""
    cond_scale: float
    sigma: Tensor
    model_options: ModelOptions


class KeyPatched(Protocol):
    """What an identity needs of the patcher of a MODEL, a CLIP or a VAE."""

    def get_key_patches(self, filter_prefix: str | None = None) -> KeyPatches:
        """Original weights and their patches."""


class Clip(Protocol):
    """A CLIP: text encoder and tokenizer (comfy.sd.CLIP). `tokenizer_options` and `use_clip_schedule` are not in every version."""

    layer_idx: int | None
    """The layer that is read (clip skip), from the end: -1 is the last. None is the encoder's own default."""

    @property
    def cond_stage_model(self) -> nn.Module:
        """The network."""

    @property
    def tokenizer(self) -> object:
        """Known by its class only."""

    @property
    def patcher(self) -> Any:
        """The patcher of the network, whose `model` is the network itself."""

    def tokenize(self, text: str, **options: Any) -> object:
        """Tokens as `encode_from_tokens_scheduled` takes them. Options are the tokenizer's own: images, llama_template."""

    def encode_from_tokens_scheduled(self, tokens: object) -> ComfyConditioning:
        """One entry, or several where a schedule or hooks are connected."""


class Vae(Protocol):
    """A VAE (comfy.sd.VAE). Pixels are (B, H, W, 3) in [0, 1]. `latent_dim` (3 for video) and `patcher` are not in every version."""

    latent_channels: int

    @property
    def first_stage_model(self) -> nn.Module:
        """The network."""

    @property
    def downscale_ratio(self) -> object:
        """Pixels per latent row: a number, or a tuple with a function for video."""

    @property
    def process_output(self) -> Callable[[Tensor], Tensor]:
        """The decoder's output as pixels in [0, 1]. May change its argument."""

    def spacial_compression_encode(self) -> int:
        """Pixels per latent row or column."""

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Latents (B, C, h, w), or (B, C, T, h, w) for video."""

    def encode_tiled(self, pixel_samples: Tensor) -> Tensor:
        """The same tile by tile: slower, with less memory."""

    def decode(self, samples_in: Tensor) -> Tensor:
        """Pixels of latents; for video (B, T, H, W, 3)."""


class ClipVisionOutput(Protocol):
    """What a CLIP_VISION makes of images."""

    def __getitem__(self, key: Literal["image_embeds"]) -> Tensor | None:
        """The embedding of each whole image, (B, width); None for an encoder that has none."""


class ClipVision(Protocol):
    """A CLIP_VISION: image encoder (comfy.clip_vision.ClipVisionModel)."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    def encode_image(self, image: Tensor) -> ClipVisionOutput:
        """The embeddings of images (B, H, W, 3) in [0, 1]."""
