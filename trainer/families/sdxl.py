"""Stable Diffusion XL: two CLIPs, and the image's size and crop as conditioning (arXiv 2307.01952)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import Epsilon, VPrediction
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import codec_of, parts_of
from .common.encoders import (
    CLIP_OPTIONS,
    ClipText,
    KlCodec,
    penultimate,
    side_by_side,
)
from .common.family import (
    DEFAULT_PROMPT_ENCODING,
    ComfyModel,
    Encoders,
    LatentSpace,
    Loading,
    PromptEncoding,
    Text,
    Tiny,
    Variant,
    stack_repeating,
)
from .common.keymap import KeyMap
from .common.lora_layouts import UNET_ORIGINAL, Widths
from .common.modules import load
from .common.source import Source
from .common.tiny import random_network, tiny_clip, tiny_vae
from .common.unet import UNET_TARGETS, UNetDenoiser, read_native, unet_lora_names
from .common.unet_names import unet_lora_map, unet_original_keys

NAME = "sdxl"
TEXT_PARTS = {"te1": "text_encoder", "te2": "text_encoder_2"}
VARIANTS = {
    "sdxl": Variant(
        objective=Epsilon(),
        guidance_scale=6.0,
        text_options=CLIP_OPTIONS,
        text_parts=TEXT_PARTS,
        text_pooled=("te2",),
        clip_layer=2,
    ),
    "sdxl-v": Variant(
        objective=VPrediction(),
        guidance_scale=6.0,
        text_options=CLIP_OPTIONS,
        text_parts=TEXT_PARTS,
        text_pooled=("te2",),
        clip_layer=2,
    ),
    "sdxl-v-ztsnr": Variant(
        objective=VPrediction(zero_terminal_snr=True), guidance_scale=6.0, text_options=CLIP_OPTIONS
    ),
}


COMFY = ComfyModel(
    model_classes=("SDXL",),
    block_classes=("BasicTransformerBlock", "ResBlock"),
    clip_loader="DualCLIPLoader",
    clip_inputs={"clip_name1": "clip_l.safetensors", "clip_name2": "clip_g.safetensors", "type": "sdxl"},
    vae_name="sdxl_vae.safetensors",
    loads_folders=True,
    crop_classes=("SDXL", "SDXLRefiner", "SDXL_instructpix2pix"),
)


class SDXLText:
    """CLIP-L and CLIP-G penultimate layers side by side; the pooled vector is CLIP-G's projection."""

    def __init__(self, first: ClipText, second: ClipText) -> None:
        self.first, self.second = first, second

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        (firsts, _), (seconds, pooled_BP) = self.first(prompts), self.second(prompts)
        return _texts(firsts, seconds, pooled_BP)

    def networks(self) -> Mapping[str, nn.Module]:
        return {"te1": self.first.module, "te2": self.second.module}

    def read(self, prompts: Sequence[str]) -> list[Text]:
        """Encodes with a gradient."""
        (firsts, _), (seconds, pooled_BP) = self.first.with_gradient(prompts), self.second.with_gradient(prompts)
        return _texts(firsts, seconds, pooled_BP)


def _texts(firsts: Sequence[Tensor], seconds: Sequence[Tensor], pooled_BP: Tensor) -> list[Text]:
    pairs = zip(side_by_side(firsts, seconds), pooled_BP, strict=True)
    return [{"text": text_LD, "pooled": pooled_P} for text_LD, pooled_P in pairs]


class SDXLDenoiser(UNetDenoiser):
    """Adds the pooled text and the image's sizes to the UNet's inputs."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled"].to(self.dtype), "time_ids": conditioning["time_ids"]}
        return self.run(noisy_BCHW, sigma_B, conditioning["text"], added)


def time_ids(geometry: Geometry) -> Tensor:
    """Returns six numbers, (6,): original height and width, crop top and left, target height and width, in pixels (paper, section 2.2).

    A mirrored image is cropped from its other edge.
    """
    left = geometry.crop_left
    if geometry.flip:
        left = geometry.resized[0] - geometry.target[0] - geometry.crop_left
    ids = [*reversed(geometry.original), geometry.crop_top, left, *reversed(geometry.target)]
    return torch.tensor(ids, dtype=torch.float32)


class SDXL:
    """The family of Stable Diffusion XL."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=4, scale=0.13025)
    bucket_step = 64
    lora_names = unet_lora_names((2048,))
    lora_layouts = UNET_ORIGINAL
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        return unet_lora_map(widths)

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return UNET_TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        native = "input_blocks.0.0.weight" in shapes and "label_emb.0.0.weight" in shapes
        diffusers = "down_blocks.0.resnets.0.conv1.weight" in shapes and "add_embedding.linear_1.weight" in shapes
        if not (native or diffusers):
            return None
        if "v_pred" in shapes:
            return "sdxl-v-ztsnr" if "ztsnr" in shapes else "sdxl-v"
        return "sdxl"

    def told_variant(self, source: Source, variant: str) -> str:
        if variant == "sdxl" and source.scheduler.get("prediction_type") == "v_prediction":
            return "sdxl-v-ztsnr" if source.scheduler.get("rescale_betas_zero_snr") else "sdxl-v"
        return variant

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        return unet_original_keys(config, keys)

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> SDXLDenoiser:
        from diffusers import UNet2DConditionModel

        return _denoiser(load(UNet2DConditionModel, source, read_native, loading), variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        parts = parts_of(source)
        parts.check(self.needed_parts(source))
        first = parts.clip("text_encoder", CLIPTextModel, loading)
        second = parts.clip("text_encoder_2", CLIPTextModelWithProjection, loading)

        def clip(module: nn.Module, name: str) -> ClipText:
            return penultimate(
                module,
                parts.tokenizer(name),
                skip=reading.clip_skip or 2,
                chunks=reading.clip_tokens // 75,
                weighted=reading.prompt_weights,
            )

        text = SDXLText(clip(first, "text_encoder"), clip(second, "text_encoder_2"))
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_repeating(texts) | {"time_ids": torch.stack([time_ids(geometry) for geometry in geometries])}

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import UNet2DConditionModel

        config = {
            "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 64, "norm_num_groups": 8,
            "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8,
        }  # fmt: skip
        clips = [tiny_clip(seed + 1, projection=False), tiny_clip(seed + 2, projection=True)]
        text = SDXLText(penultimate(*clips[0]), penultimate(*clips[1]))
        vae = tiny_vae(seed, 4)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(UNet2DConditionModel, config, seed), "sdxl"),
            encoders=Encoders(text, KlCodec(vae)),
            part="unet",
            text_parts={"text_encoder": clips[0], "text_encoder_2": clips[1]},
        )


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> SDXLDenoiser:
    objective = VARIANTS[variant].objective
    return SDXLDenoiser(
        family=NAME, module=module, objective=objective, target_presets=UNET_TARGETS, compute_dtype=compute_dtype
    )


FAMILY = SDXL()
