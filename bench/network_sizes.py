"""Configurations of real networks, as their published diffusers folders have them, and of toys of the same classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    name: str
    family: str
    variant: str
    network: str
    """Class in diffusers."""
    config: Mapping[str, Any]
    text: Mapping[str, tuple[int, ...]]
    """What the text encoders give for one prompt."""
    billions: float = 0.0
    """Published number of parameters; 0 for a toy."""

    @property
    def toy(self) -> bool:
        return not self.billions


UNET, SD3, FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"
LUMINA2, QWEN = "Lumina2Transformer2DModel", "QwenImageTransformer2DModel"
_SDXL = {
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip

SIZES = (
    Size(
        name="SD1.5 toy", family="sd", variant="sd1", network=UNET, text={"text": (77, 64)},
        config={"block_out_channels": (32, 64), "cross_attention_dim": 64, "norm_num_groups": 8, "attention_head_dim": 4,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
    ),
    Size(
        name="SDXL toy", family="sdxl", variant="sdxl", network=UNET, text={"text": (77, 64), "pooled": (32,)},
        config={**_SDXL, "block_out_channels": (32, 64, 64), "cross_attention_dim": 64, "norm_num_groups": 8, "attention_head_dim": (2, 4, 4),
                "transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8},
    ),
    Size(
        name="SD3 toy", family="sd3", variant="sd3", network=SD3, text={"text": (128, 64), "pooled": (32,)},
        config={"num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4, "caption_projection_dim": 128, "joint_attention_dim": 64,
                "pooled_projection_dim": 32, "pos_embed_max_size": 64, "sample_size": 64, "qk_norm": "rms_norm"},
    ),
    Size(
        name="Flux toy", family="flux", variant="dev", network=FLUX, text={"text": (128, 64), "pooled": (32,)},
        config={"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4,
                "joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12)},
    ),
    Size(
        name="Lumina2 toy", family="lumina2", variant="lumina2", network=LUMINA2, text={"text": (128, 64)},
        config={"in_channels": 16, "hidden_size": 96, "num_layers": 4, "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
                "multiple_of": 32, "axes_dim_rope": (8, 8, 8), "axes_lens": (300, 512, 512), "cap_feat_dim": 64},
    ),
    Size(
        name="Qwen-Image toy", family="qwen_image", variant="qwen-image", network=QWEN, text={"text": (128, 64)},
        config={"in_channels": 64, "out_channels": 16, "num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4,
                "joint_attention_dim": 64, "axes_dims_rope": (4, 14, 14)},
    ),
    Size(
        name="Z-Image toy", family="z_image", variant="z-image", network="ZImageTransformer2DModel", text={"text": (128, 32)},
        config={"in_channels": 16, "dim": 48, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 32,
                "axes_dims": (4, 6, 6), "axes_lens": (1536, 512, 512)},
    ),
    Size(
        name="FLUX.2 toy", family="flux2", variant="klein-base", network="Flux2Transformer2DModel", text={"text": (128, 48)},
        config={"in_channels": 128, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4,
                "joint_attention_dim": 48, "axes_dims_rope": (8, 8, 8, 8), "guidance_embeds": False},
    ),
    Size(
        name="Chroma toy", family="chroma", variant="chroma", network="ChromaTransformer2DModel", text={"text": (128, 64)},
        config={"in_channels": 64, "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4,
                "joint_attention_dim": 64, "axes_dims_rope": (8, 12, 12), "approximator_num_channels": 16, "approximator_hidden_dim": 32,
                "approximator_layers": 2},
    ),
    Size(
        name="Krea 2 toy", family="krea2", variant="raw", network="Krea2Transformer2DModel", text={"text": (128, 3 * 32)},
        config={"in_channels": 64, "num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 256, "timestep_embed_dim": 32, "text_hidden_dim": 32, "num_text_layers": 3,
                "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 48, "axes_dims_rope": (8, 12, 12)},
    ),
    Size(
        name="Qwen-Image 2.1 toy", family="qwen_image21", variant="qwen-image-2.1", network="QwenImage21Transformer2DModel",
        text={"text": (128, 64)},
        config={"num_layers": 4, "attention_head_dim": 32, "num_attention_heads": 4, "context_in_dim": 64, "axes_dims_rope": (4, 14, 14)},
    ),
    Size(
        name="SDXL 2.6B", family="sdxl", variant="sdxl", network=UNET, billions=2.57, text={"text": (77, 2048), "pooled": (1280,)},
        config={**_SDXL, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
                "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816, "sample_size": 128},
    ),
    Size(
        name="Lumina2 2.6B", family="lumina2", variant="lumina2", network=LUMINA2, billions=2.6, text={"text": (256, 2304)},
        config={"in_channels": 16, "hidden_size": 2304, "num_layers": 26, "num_refiner_layers": 2, "num_attention_heads": 24, "num_kv_heads": 8,
                "multiple_of": 256, "axes_dim_rope": (32, 32, 32), "axes_lens": (300, 512, 512), "cap_feat_dim": 2304, "sample_size": 128},
    ),
    Size(
        name="Z-Image 6B", family="z_image", variant="z-image", network="ZImageTransformer2DModel", billions=6.15, text={"text": (256, 2560)},
        config={},  # diffusers' defaults are those of the published file
    ),
    Size(
        name="SD3.5-L 8B", family="sd3", variant="sd3", network=SD3, billions=8.06, text={"text": (333, 4096), "pooled": (2048,)},
        config={"num_layers": 38, "attention_head_dim": 64, "num_attention_heads": 38, "caption_projection_dim": 2432, "joint_attention_dim": 4096,
                "pooled_projection_dim": 2048, "pos_embed_max_size": 192, "sample_size": 128, "qk_norm": "rms_norm"},
    ),
    Size(
        name="Flux 12B", family="flux", variant="dev", network=FLUX, billions=11.9, text={"text": (512, 4096), "pooled": (768,)},
        config={"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
                "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56)},
    ),
    Size(
        name="Krea 2 12.8B", family="krea2", variant="raw", network="Krea2Transformer2DModel", billions=12.82, text={"text": (512, 12 * 2560)},
        config={},  # diffusers' defaults are those of the published file
    ),
    Size(
        name="Qwen-Image 20B", family="qwen_image", variant="qwen-image", network=QWEN, billions=20.4, text={"text": (256, 3584)},
        config={"in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128, "num_attention_heads": 24,
                "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56)},
    ),
)  # fmt: skip
