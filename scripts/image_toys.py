"""Small networks of every class in `image_models.CLASSES`: the same configurations with few, narrow blocks.

{class: what differs from the published configuration}, and the widths of its texts. What decides how a network computes
(patches, norms, guidance, kinds of blocks) stays as it is published. `record_host_training.py` trains them.
"""

from collections.abc import Mapping
from typing import Any

from .image_models import CLASSES, TEXTS

_UNET = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4,
}
_SD1 = {**_UNET, "model_channels": 32, "context_dim": 32}
_SD2 = {**_UNET, "model_channels": 64, "context_dim": 32}
_UNCLIP = {**_SD2, "adm_in_channels": 64}
_SIZES = 6 * 256
"""Width of the embedding of SDXL's six sizes; its refiner has five."""
_XL = {
    **_SD2, "context_dim": 48, "adm_in_channels": 40 + _SIZES, "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2],
}  # fmt: skip
_FLUX = {
    "hidden_size": 128, "num_heads": 1, "depth": 2, "depth_single_blocks": 2, "context_in_dim": 64, "vec_in_dim": 40,
}  # fmt: skip
_CHROMA = {  # 28 + 2 blocks: ComfyUI takes 344 modulations whatever the size, 12 and 3 a block and 2 at the end
    "hidden_size": 32, "num_heads": 1, "depth": 28, "depth_single_blocks": 2, "axes_dim": [4, 14, 14], "context_in_dim": 48,
    "out_dim": 32, "hidden_dim": 24, "n_layers": 2,
}  # fmt: skip
_Z_IMAGE = {
    "dim": 288, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 9, "n_kv_heads": 9, "axes_dims": [8, 12, 12], "cap_feat_dim": 64,
}  # fmt: skip
_COSMOS = {
    "model_channels": 128, "num_heads": 2, "num_blocks": 2, "adaln_lora_dim": 16, "crossattn_emb_channels": 64,
}  # fmt: skip
_HUNYUAN = {"hidden_size": 128, "num_heads": 1, "depth": 2, "depth_single_blocks": 2, "context_in_dim": 64}
_HYDIT = {"hidden_size": 128, "depth": 4, "num_heads": 4, "text_states_dim": 64, "text_states_dim_t5": 96}
_PIXART = {"hidden_size": 96, "num_heads": 4, "depth": 2, "caption_channels": 64}
_KANDINSKY = {
    "model_dim": 64, "ff_dim": 128, "time_dim": 32, "axes_dims": (16, 24, 24), "in_text_dim": 64, "in_text_dim2": 40,
    "num_visual_blocks": 2, "num_text_blocks": 1,
}  # fmt: skip
_WAN = {"dim": 128, "ffn_dim": 256, "freq_dim": 64, "text_dim": 64, "num_heads": 2, "num_layers": 2}
_OMNIGEN = {
    "hidden_size": 96, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 32, "axes_dim_rope": [8, 8, 8],
}  # fmt: skip

SMALLER: Mapping[str, Mapping[str, Any]] = {
    "SD15": _SD1,
    "SD15_instructpix2pix": _SD1,
    "SD20": _SD2,
    "SD21UnclipL": _UNCLIP,
    "SD21UnclipH": _UNCLIP,
    "SDXL": _XL,
    "SDXL_instructpix2pix": _XL,
    "SDXLRefiner": {**_XL, "adm_in_channels": 40 + _SIZES - 256},
    "SSD1B": _XL,
    "Segmind_Vega": _XL,
    "KOALA_700M": _XL,
    "KOALA_1B": _XL,
    "Stable_Cascade_C": {
        "c_cond": 64, "c_hidden": [64, 64], "nhead": [2, 2], "blocks": [[2, 2], [2, 2]], "c_clip_text": 48, "c_clip_text_pooled": 40,
    },
    "Stable_Cascade_B": {
        "c_cond": 64, "c_hidden": [32, 32, 64, 64], "nhead": [-1, -1, 2, 2], "blocks": [[1, 1, 2, 1], [1, 2, 1, 1]], "c_clip": 40,
    },
    "SD3": {
        "depth": 2, "adm_in_channels": 40, "num_patches": 1024, "pos_embed_max_size": 32, "x_block_self_attn_layers": [0],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    },
    "AuraFlow": {
        "dim": 256, "n_layers": 3, "n_double_layers": 1, "n_heads": 1, "global_conddim": 256, "cond_seq_dim": 64, "max_seq": 256,
    },
    "PixArtAlpha": _PIXART,
    "PixArtSigma": _PIXART,
    "HunyuanDiT": _HYDIT,
    "HunyuanDiT1": _HYDIT,
    "Flux": _FLUX,
    "FluxSchnell": _FLUX,
    "FluxInpaint": _FLUX,
    "LongCatImage": {**_FLUX, "vec_in_dim": None},
    "Flux2": {**_FLUX, "vec_in_dim": None},
    "Chroma": _CHROMA,
    "ChromaRadiance": {**_CHROMA, "nerf_hidden_size": 16, "nerf_depth": 2},
    "Lumina2": {**_Z_IMAGE, "dim": 96, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [8, 8, 8]},
    "ZImage": _Z_IMAGE,
    "ZImagePixelSpace": {**_Z_IMAGE, "decoder_hidden_size": 32, "decoder_num_res_blocks": 2},
    "Anima": {**_COSMOS, "crossattn_emb_channels": 1024},
    "CosmosT2IPredict2": _COSMOS,
    "HiDream": {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "caption_channels": [64, 64],
        "text_emb_dim": 40, "axes_dims_rope": [4, 6, 6], "llama_layers": [0, 1, 0, 1],
    },
    "HiDreamO1": {
        "text_config_overrides": {
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "rope_dims": [4, 2, 2],
        },
        "vision_config_overrides": {
            "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "depth": 1, "num_position_embeddings": 16,
            "deepstack_visual_indexes": (),
        },
    },
    "HunyuanImage21": _HUNYUAN,
    "QwenImage": {
        "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 64, "axes_dims_rope": (4, 14, 14),
    },
    "MageFlow": {
        "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 64, "axes_dims_rope": (4, 14, 14),
    },
    "PixelDiTT2I": {
        "hidden_size": 64, "num_groups": 2, "pixel_attn_hidden_size": 32, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1,
        "txt_embed_dim": 64, "txt_max_length": 64,
    },
    "Omnigen2": {**_OMNIGEN, "num_layers": 2, "num_refiner_layers": 1, "text_feat_dim": 64},
    "Boogu": {**_OMNIGEN, "num_layers": 4, "num_double_stream_layers": 2, "num_refiner_layers": 1, "instruction_feat_dim": 64},
    "JoyImage": {"hidden_size": 128, "num_attention_heads": 2, "text_dim": 64, "num_layers": 2, "rope_dim_list": [8, 28, 28]},
    "Ideogram4": {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "intermediate_size": 96, "adaln_dim": 32,
        "llm_features_dim": 64, "mrope_section": (6, 5, 5),
    },
    "Krea2": {
        "features": 64, "tdim": 32, "txtdim": 32, "heads": 2, "kvheads": 1, "layers": 2, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2,
    },
    "Lens": {"num_layers": 2, "num_attention_heads": 2, "enc_hidden_dim": 24},
    "ErnieImage": {
        "hidden_size": 128, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 192, "text_in_dim": 64, "rope_axes_dim": (8, 12, 12),
    },
    "Kandinsky5Image": _KANDINSKY,
    "WAN21_T2V": _WAN,
    "WAN22_T2V": _WAN,
    "HunyuanVideo": {**_HUNYUAN, "vec_in_dim": 40},
    "HunyuanVideo15": {**_HUNYUAN, "depth_single_blocks": 0, "vision_in_dim": 48},
    "GenmoMochi": {"depth": 3, "num_heads": 2, "hidden_size_x": 128, "hidden_size_y": 64, "mlp_ratio_x": 96.0, "t5_feat_dim": 64, "t5_token_length": 32},
    "LTXV": {
        "num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 64, "num_layers": 2,
    },
    "CosmosT2V": _COSMOS,
    "Kandinsky5": _KANDINSKY,
    "CogVideoX_T2V": {
        "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "time_embed_dim": 32, "text_embed_dim": 64,
    },
}  # fmt: skip

POOLED_WIDTH = 40
WIDTHS: Mapping[str, int] = {
    **dict.fromkeys(("SD15", "SD15_instructpix2pix", "SD20", "SD21UnclipL", "SD21UnclipH"), 32),
    **dict.fromkeys(
        ("SDXL", "SDXL_instructpix2pix", "SDXLRefiner", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B", "Chroma", "ChromaRadiance",
         "Stable_Cascade_C", "Stable_Cascade_B"), 48,
    ),
    "Anima": 1024,
    "Krea2": 3 * 32,
    "Lens": 4 * 24,
}  # fmt: skip
"""Width of the text, where it is not 64. A pooled text is POOLED_WIDTH wide."""
SPECIAL: Mapping[str, tuple[int, ...]] = {"conditioning_llama3": (2, 32, 64), "conditioning_mt5xl": (256, 96)}
"""Further texts: two layers of a Llama in place of 32."""

LATENTS: Mapping[str, tuple[int, int]] = dict.fromkeys(("PixArtAlpha", "PixArtSigma"), (32, 48))
"""Rows and columns of the latents, where they are not the usual ones: PixArt divides by 0 below 256 pixels."""


def config(name: str) -> dict[str, Any]:
    """The published configuration of a class, made small."""
    return {**CLASSES[name].config, **SMALLER[name]}


def text_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """{argument of extra_conds: shape of a text for the small network, less the batch}."""
    found = {}
    for key, shape in TEXTS[name].items():
        width = POOLED_WIDTH if key == "pooled_output" else WIDTHS.get(name, 64)
        is_kept = key.endswith(("_ids", "_mask", "_mt5xl", "byt5small")) or "mask" in key
        found[key] = SPECIAL.get(key) or (shape if is_kept else (*shape[:-1], width))
    return found
