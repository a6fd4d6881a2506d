"""Stable Diffusion 1.x and 2.x: one UNet, epsilon or v (arXiv 2112.10752). Text: one CLIP, 77 tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import Epsilon, VPrediction
from ..errors import ConfigError
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import codec_of, parts_of
from .common.encoders import (
    CLIP_OPTIONS,
    ClipText,
    KlCodec,
    clip_depth,
    clip_tokens,
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
from .common.lora_layouts import UNET, Widths
from .common.modules import load
from .common.source import Source
from .common.tiny import random_network, tiny_clip, tiny_vae
from .common.unet import UNET_TARGETS, UNetDenoiser, read_native, unet_lora_names
from .common.unet_names import unet_lora_map, unet_original_keys

NAME = "sd"
SD1_CONTEXT = 768
SD2_TEXT_LAYERS = 24
SD2_V_MARK = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
TEXT_PARTS = {"te": "text_encoder"}
VARIANTS = {
    "sd1": Variant(side=512, objective=Epsilon(), guidance_scale=7.0, text_options=CLIP_OPTIONS, text_parts=TEXT_PARTS),
    "sd1-v": Variant(
        side=512, objective=VPrediction(), guidance_scale=7.0, text_options=CLIP_OPTIONS, text_parts=TEXT_PARTS
    ),
    "sd2": Variant(
        side=512,
        objective=Epsilon(),
        guidance_scale=7.0,
        text_options=CLIP_OPTIONS,
        text_parts=TEXT_PARTS,
        clip_layer=2,
        clip_depth=SD2_TEXT_LAYERS,
    ),
    "sd2-v": Variant(
        side=768,
        objective=VPrediction(),
        guidance_scale=7.0,
        text_options=CLIP_OPTIONS,
        text_parts=TEXT_PARTS,
        clip_layer=2,
        clip_depth=SD2_TEXT_LAYERS,
    ),
}


COMFY = ComfyModel(
    model_classes=("BaseModel",),  # the plain base class: SD1 and SD2 have none of their own
    block_classes=("BasicTransformerBlock", "ResBlock"),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "clip_l.safetensors", "type": "stable_diffusion"},
    vae_name="vae-ft-mse-840000-ema-pruned.safetensors",
    loads_folders=True,
)


class SDText:
    """One CLIP: the last hidden state after the final norm (a diffusers SD2 encoder is cut one layer short for that)."""

    def __init__(self, clip: ClipText) -> None:
        self.clip = clip

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        texts, _ = self.clip(prompts)
        return [{"text": text} for text in texts]

    def networks(self) -> Mapping[str, nn.Module]:
        return {"te": self.clip.module}

    def read(self, prompts: Sequence[str]) -> list[Text]:
        """Encodes with a gradient."""
        texts, _ = self.clip.with_gradient(prompts)
        return [{"text": text} for text in texts]


class SDDenoiser(UNetDenoiser):
    """A UNet whose only condition is the text."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.run(noisy_BCHW, sigma_B, conditioning["text"])


class SD:
    """The family of Stable Diffusion 1.x and 2.x."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=4, scale=0.18215)
    bucket_step = 64
    lora_names = unet_lora_names((768, 1024))
    lora_layouts = UNET
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        return unet_lora_map(widths, bare=(0,))

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return UNET_TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        native = "input_blocks.0.0.weight" in shapes and "label_emb.0.0.weight" not in shapes
        diffusers = "down_blocks.0.resnets.0.conv1.weight" in shapes and "add_embedding.linear_1.weight" not in shapes
        if not (native or diffusers):
            return None
        context = next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), None)
        if context is None:
            return None
        linear = any(key.endswith("proj_in.weight") and len(shape) == 2 for key, shape in shapes.items())
        return "sd2" if linear and context != SD1_CONTEXT else "sd1"

    def told_variant(self, source: Source, variant: str) -> str:
        """A diffusers folder says in its scheduler whether the model predicts v; of an SD2 file ComfyUI's test reads it."""
        if source.is_diffusers:
            return f"{variant}-v" if source.scheduler.get("prediction_type") == "v_prediction" else variant
        bias = source.tensors().get(SD2_V_MARK) if variant == "sd2" else None
        return "sd2-v" if bias is not None and torch.std(bias.float(), unbiased=False) > 0.09 else variant

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        return unet_original_keys(config, keys)

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> SDDenoiser:
        from diffusers import UNet2DConditionModel

        module = load(UNet2DConditionModel, source, read_native, loading)
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import CLIPTextModel

        parts = parts_of(source)
        parts.check(self.needed_parts(source))
        module = parts.clip("text_encoder", CLIPTextModel, loading)
        clip = ClipText(
            module,
            parts.tokenizer("text_encoder"),
            max_tokens=clip_tokens(module),
            skip=_skip(module, variant, reading.clip_skip),
            chunks=reading.clip_tokens // 75,
            weighted=reading.prompt_weights,
        )
        return Encoders(SDText(clip), codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_repeating(texts)

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import UNet2DConditionModel

        config = {
            "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8,
            "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }  # fmt: skip
        clip = tiny_clip(seed + 1, projection=False)
        vae = tiny_vae(seed, 4)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(UNet2DConditionModel, config, seed), "sd1"),
            encoders=Encoders(SDText(ClipText(*clip, max_tokens=16)), KlCodec(vae)),
            part="unet",
            text_parts={"text_encoder": clip},
        )


def _skip(module: nn.Module, variant: str, wanted: int) -> int:
    """Layers from the end of this network, for a layer counted from the end of the whole one as in ComfyUI.

    SD2 reads the last but one of 24 layers, and its diffusers folder lacks the last. Raises ConfigError.
    """
    if not variant.startswith("sd2"):
        return wanted or 1
    lacking = 0 if clip_depth(module) == SD2_TEXT_LAYERS else 1
    if wanted == 1 and lacking:
        raise ConfigError("text.clip_skip = 1: this folder's text encoder lacks the last layer; use 2 or more, or 0")
    return (wanted or 2) - lacking


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> SDDenoiser:
    objective = VARIANTS[variant].objective
    return SDDenoiser(
        family=NAME, module=module, objective=objective, target_presets=UNET_TARGETS, compute_dtype=compute_dtype
    )


FAMILY = SD()
