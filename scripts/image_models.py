"""ComfyUI's model classes that make images, at their published sizes: what `write_models.py` builds without weights.

{class of comfy.supported_models: (configuration of its network, where the size was read)}. What a class's own defaults give
is not repeated. Every class that ComfyUI v0.33 supports is either here or in LEFT_OUT with a reason; a test compares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """The network of one published model."""

    config: Mapping[str, Any]
    source: str
    """Whose size it is, and where it was read."""


_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "use_temporal_attention": False, "use_temporal_resblock": False, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1, "model_channels": 320, "adm_in_channels": None,
}  # fmt: skip
_SD1 = {**_UNET, "use_linear_in_transformer": False, "context_dim": 768}
_SD2 = {**_UNET, "use_linear_in_transformer": True, "context_dim": 1024}
_XL = {
    **_UNET, "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10, "use_linear_in_transformer": True, "context_dim": 2048,
}  # fmt: skip
_KOALA = {**_XL, "num_res_blocks": [1, 1, 1]}
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
_FLUX2 = {
    **_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None, "mlp_ratio": 3.0,
    "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "txt_ids_dims": [3], "guidance_embed": False,
}  # fmt: skip
_CHROMA = {
    **{name: value for name, value in _FLUX.items() if name != "guidance_embed"},
    "image_model": "chroma", "vec_in_dim": None, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120, "n_layers": 5,
}  # fmt: skip
_LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26, "qk_norm": True,
    "n_heads": 24, "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}  # fmt: skip
_Z_IMAGE = {
    **_LUMINA, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
_COSMOS = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 2048, "concat_padding_mask": True, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
    "use_adaln_lora": True, "adaln_lora_dim": 256, "num_blocks": 28, "num_heads": 16, "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0, "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0, "extra_w_extrapolation_ratio": 1.0, "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
_HUNYUAN = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2], "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 20, "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
_WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 5120, "ffn_dim": 13824, "freq_dim": 256,
    "num_heads": 40, "num_layers": 40, "patch_size": (1, 2, 2), "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True,
    "eps": 1e-6,
}  # fmt: skip
_HYDIT = {"image_model": "hydit", "hidden_size": 1408, "depth": 40, "mlp_ratio": 4.3637}
_PIXART = {"num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 28}
_CODE = "ComfyUI model_detection.py"
_DEFAULTS = "defaults of ComfyUI's class"

CLASSES: Mapping[str, Published] = {
    "SD15": Published(_SD1, "Stable Diffusion 1.5; model_detection.py, SD15"),
    "SD15_instructpix2pix": Published({**_SD1, "in_channels": 8}, "InstructPix2Pix; supported_models.py"),
    "SD20": Published(_SD2, "Stable Diffusion 2.1; model_detection.py, SD21"),
    "SD21UnclipL": Published({**_SD2, "num_classes": "sequential", "adm_in_channels": 1536}, "unCLIP L; model_detection.py"),
    "SD21UnclipH": Published({**_SD2, "num_classes": "sequential", "adm_in_channels": 2048}, "unCLIP H; model_detection.py"),
    "SDXL": Published(_XL, "SDXL base 1.0; model_detection.py, SDXL"),
    "SDXL_instructpix2pix": Published({**_XL, "in_channels": 8}, "SDXL InstructPix2Pix; model_detection.py"),
    "SDXLRefiner": Published(
        {
            **_XL, "model_channels": 384, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 1280,
            "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0], "transformer_depth_output": [0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0],
            "transformer_depth_middle": 4, "adm_in_channels": 2560,
        },
        "SDXL refiner 1.0; model_detection.py, SDXL_refiner",
    ),
    "SSD1B": Published(
        {**_XL, "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
         "transformer_depth_middle": -1}, "SSD-1B; model_detection.py, SSD_1B",
    ),
    "Segmind_Vega": Published(
        {**_XL, "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
         "transformer_depth_middle": -1}, "Segmind Vega; model_detection.py",
    ),
    "KOALA_700M": Published(
        {**_KOALA, "transformer_depth": [0, 2, 5], "transformer_depth_output": [0, 0, 2, 2, 5, 5], "transformer_depth_middle": -2},
        "KOALA 700M; model_detection.py",
    ),
    "KOALA_1B": Published(
        {**_KOALA, "transformer_depth": [0, 2, 6], "transformer_depth_output": [0, 0, 2, 2, 6, 6], "transformer_depth_middle": 6},
        "KOALA 1B; model_detection.py",
    ),
    "Stable_Cascade_C": Published({"stable_cascade_stage": "c", "c_cond": 2048}, "Stable Cascade, stage C full; model_detection.py"),
    "Stable_Cascade_B": Published(
        {"stable_cascade_stage": "b", "c_hidden": [320, 640, 1280, 1280], "nhead": [-1, -1, 20, 20],
         "blocks": [[2, 6, 28, 6], [6, 28, 6, 2]], "block_repeat": [[1, 1, 1, 1], [3, 3, 2, 2]]},
        "Stable Cascade, stage B; model_detection.py",
    ),
    "SD3": Published(
        {"in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "input_size": None, "adm_in_channels": 2048,
         "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
         "num_patches": 384 * 384, "pos_embed_max_size": 384, "pos_embed_scaling_factor": None, "qk_norm": "rms",
         "x_block_self_attn_layers": list(range(13))},
        "SD3.5 medium: 24 blocks, dual attention in the first 13; transformer/config.json of stabilityai/stable-diffusion-3.5-medium",
    ),
    "AuraFlow": Published({"max_seq": 4096}, f"AuraFlow 0.3; {_DEFAULTS}"),
    "PixArtAlpha": Published(
        {**_PIXART, "image_model": "pixart_alpha", "micro_condition": True, "model_max_length": 120, "input_size": 128, "pe_interpolation": 2},
        "PixArt-alpha XL 1024; model_detection.py",
    ),
    "PixArtSigma": Published(
        {**_PIXART, "image_model": "pixart_sigma", "micro_condition": False, "model_max_length": 300, "input_size": 128, "pe_interpolation": 2},
        "PixArt-sigma XL 1024; model_detection.py",
    ),
    "HunyuanDiT": Published(_HYDIT, "HunyuanDiT 1.2, DiT-g/2; model_detection.py"),
    "HunyuanDiT1": Published({**_HYDIT, "image_model": "hydit1", "size_cond": True, "use_style_cond": True}, "HunyuanDiT 1.0; model_detection.py"),
    "Flux": Published(_FLUX, "FLUX.1 dev; model_detection.py"),
    "FluxSchnell": Published({**_FLUX, "guidance_embed": False}, "FLUX.1 schnell; model_detection.py"),
    "FluxInpaint": Published({**_FLUX, "in_channels": 96}, "FLUX.1 Fill dev; supported_models.py"),
    "LongCatImage": Published(
        {**_FLUX, "guidance_embed": False, "vec_in_dim": None, "context_in_dim": 3584, "txt_ids_dims": [1, 2], "depth": 10,
         "depth_single_blocks": 20}, "LongCat-Image: transformer/config.json of meituan-longcat/LongCat-Image",
    ),
    "Flux2": Published({**_FLUX2, "hidden_size": 3072, "context_in_dim": 7680, "depth": 5, "depth_single_blocks": 20}, "FLUX.2 Klein 4B; model_detection.py, block counts of its file"),
    "Chroma": Published(_CHROMA, "Chroma1 HD; model_detection.py"),
    "ChromaRadiance": Published(
        {**_CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 64,
         "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
         "nerf_embedder_dtype": None, "use_x0": True, "use_sequential_txt_ids": False},
        "Chroma1 Radiance, on pixels; model_detection.py",
    ),
    "Lumina2": Published(_LUMINA, "Lumina-Image 2.0; model_detection.py"),
    "ZImage": Published(_Z_IMAGE, "Z-Image, base and Turbo; model_detection.py"),
    "ZImagePixelSpace": Published(
        {**_Z_IMAGE, "image_model": "zimage_pixel", "patch_size": 16, "in_channels": 3, "decoder_hidden_size": 3840,
         "decoder_num_res_blocks": 4, "decoder_max_freqs": 8},
        "Z-Image on pixels: patches and decoder are ComfyUI's defaults, the rest is Z-Image's",
    ),
    "Anima": Published({**_COSMOS, "image_model": "anima"}, "Anima 2B; model_detection.py"),
    "CosmosT2IPredict2": Published({**_COSMOS, "image_model": "cosmos_predict2"}, "Cosmos-Predict2 2B; model_detection.py"),
    "HiDream": Published(
        {"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32,
         "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
         "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128],
         "llama_layers": [*range(32), *[31] * 16]},
        "HiDream I1; model_detection.py",
    ),
    "HiDreamO1": Published({"image_model": "hidream_o1"}, f"HiDream O1, on pixels; {_DEFAULTS}"),
    "HunyuanImage21": Published(
        {**_HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [64, 64], "vec_in_dim": None,
         "context_in_dim": 3584, "hidden_size": 3584, "num_heads": 28, "guidance_embed": False, "byt5": True},
        "HunyuanImage 2.1; model_detection.py, block counts of its file",
    ),
    "QwenImage": Published({"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}, "Qwen-Image in all versions; model_detection.py"),
    "MageFlow": Published({"image_model": "mage_flow"}, f"Mage-Flow; {_DEFAULTS}"),
    "PixelDiTT2I": Published({"image_model": "pixeldit_t2i"}, f"PixelDiT, on pixels; {_DEFAULTS}"),
    "Omnigen2": Published(
        {"image_model": "omnigen2", "axes_dim_rope": [40, 40, 40], "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
         "hidden_size": 2520, "in_channels": 16, "multiple_of": 256, "norm_eps": 1e-5, "num_attention_heads": 21, "num_kv_heads": 7,
         "num_layers": 32, "num_refiner_layers": 2, "out_channels": None, "patch_size": 2, "text_feat_dim": 2048, "timestep_scale": 1000.0},
        "OmniGen2; model_detection.py",
    ),
    "Boogu": Published({"image_model": "boogu"}, f"Boogu-Image; {_DEFAULTS}"),
    "JoyImage": Published({"image_model": "joyimage"}, f"JoyImage; {_DEFAULTS}"),
    "Ideogram4": Published({"image_model": "ideogram4"}, f"Ideogram 4; {_DEFAULTS}"),
    "Krea2": Published({"image_model": "krea2"}, f"Krea 2; {_DEFAULTS}"),
    "Lens": Published({"image_model": "lens"}, f"Lens; {_DEFAULTS}"),
    "ErnieImage": Published({"image_model": "ernie"}, f"ErnieImage; {_DEFAULTS}"),
    "Kandinsky5Image": Published(
        {"image_model": "kandinsky5", "model_dim": 2560, "ff_dim": 10240, "time_dim": 512, "axes_dims": (32, 48, 48),
         "rope_scale_factor": (1.0, 1.0, 1.0), "visual_embed_dim": 64, "num_text_blocks": 2, "num_visual_blocks": 50},
        "Kandinsky 5 Image Lite 6B: width by model_detection.py, 50 blocks by its model card",
    ),
    "WAN21_T2V": Published(_WAN, "Wan 2.1 14B and both experts of Wan 2.2, one frame; wan/configs of Wan-Video/Wan2.1"),
    "WAN22_T2V": Published(
        {**_WAN, "in_dim": 48, "out_dim": 48, "dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30},
        "Wan 2.2 5B, one frame; wan/configs of Wan-Video/Wan2.2",
    ),
    "HunyuanVideo": Published(_HUNYUAN, "HunyuanVideo, one frame; model_detection.py, block counts of its file"),
    "HunyuanVideo15": Published(
        {**_HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None, "context_in_dim": 3584,
         "hidden_size": 2048, "num_heads": 16, "depth": 54, "depth_single_blocks": 0, "guidance_embed": False, "byt5": True,
         "use_cond_type_embedding": True, "vision_in_dim": 1152, "meanflow_sum": True},
        "HunyuanVideo 1.5, one frame; transformer/config.json of tencent/HunyuanVideo-1.5",
    ),
    "GenmoMochi": Published(
        {"image_model": "mochi_preview", "depth": 48, "patch_size": 2, "num_heads": 24, "hidden_size_x": 3072, "hidden_size_y": 1536,
         "mlp_ratio_x": 4.0, "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False,
         "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True, "timestep_mlp_bias": True,
         "attend_to_padding": False, "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 4096, "t5_token_length": 256,
         "rope_theta": 10000.0},
        "Mochi 1 preview, one frame; model_detection.py",
    ),
    "LTXV": Published({"image_model": "ltxv"}, f"LTX-Video 2B, one frame; {_DEFAULTS}"),
    "CosmosT2V": Published(
        {"image_model": "cosmos", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
         "patch_spatial": 2, "patch_temporal": 1, "model_channels": 4096, "block_config": "FA-CA-MLP", "concat_padding_mask": True,
         "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop", "block_x_format": "THWBD",
         "affline_emb_norm": True, "use_adaln_lora": True, "adaln_lora_dim": 256, "num_blocks": 28, "num_heads": 32,
         "extra_per_block_abs_pos_emb": True, "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0,
         "rope_t_extrapolation_ratio": 2.0, "extra_per_block_abs_pos_emb_type": "learnable"},
        "Cosmos 1 7B, one frame; model_detection.py",
    ),
    "Kandinsky5": Published(
        {"image_model": "kandinsky5", "model_dim": 1792, "axes_dims": (16, 24, 24), "num_visual_blocks": 32},
        f"Kandinsky 5 Lite video, one frame; {_DEFAULTS}",
    ),
    "CogVideoX_T2V": Published(
        {"image_model": "cogvideox", "num_attention_heads": 48, "num_layers": 42, "in_channels": 16, "use_rotary_positional_embeddings": True},
        "CogVideoX 5B, one frame; transformer/config.json of zai-org/CogVideoX-5b",
    ),
}  # fmt: skip

_MAPS = "makes a map of an image, no image"
_SHAPES = "makes a shape in space, no image"
_SOUND = "makes sound"
_UPSCALES = "makes a larger image of a small one: it has no captions to learn from"
_FROM_IMAGES = "makes a film of given images or of a film: the engine has no such samples"
_VIEWS = "makes further views of an object in an image: the engine has no camera to learn from"

LEFT_OUT: Mapping[str, str] = {
    "LotusD": _MAPS, "RT_DETR_v4": _MAPS, "SAM3": _MAPS, "SAM31": _MAPS, "DepthAnything3": _MAPS, "WAN21_FlowRVS": _MAPS,
    "Stable_Zero123": _VIEWS, "SV3D_u": _VIEWS, "SV3D_p": _VIEWS,
    "Hunyuan3Dv2": _SHAPES, "Hunyuan3Dv2_1": _SHAPES, "Hunyuan3Dv2mini": _SHAPES, "TripoSplat": _SHAPES, "Trellis2": _SHAPES,
    "StableAudio": _SOUND, "StableAudio3": _SOUND, "ACEStep": _SOUND, "ACEStep15": _SOUND, "MiniMaxMusic3": _SOUND,
    "SD_X4Upscaler": _UPSCALES, "HunyuanImage21Refiner": _UPSCALES, "HunyuanVideo15_SR_Distilled": _UPSCALES, "SeedVR2": _UPSCALES,
    "PiD": "decodes the latents of other models into pixels: it stands in the place of a VAE",
    "WAN21_CausalAR_T2V": "makes a film piece by piece from its own last frames",
    "LTXAV": "makes film and sound at once: its latents are two, and the engine has one",
    "MiniMaxH3": "makes film and sound at once: its latents are two, and the engine has one",
    **dict.fromkeys(
        ("SVD_img2vid", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "CosmosI2V", "CosmosI2VPredict2",
         "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Vace", "WAN21_Camera", "WAN22_Camera", "WAN22_S2V", "WAN21_HuMo",
         "WAN22_Animate", "WAN_Animate2", "WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer", "CogVideoX_I2V", "CogVideoX_Inpaint"),
        _FROM_IMAGES,
    ),
}  # fmt: skip
"""{class: why it is not described}."""


def _alike(names: Sequence[str], text: Mapping[str, tuple[int, ...]]) -> dict[str, Mapping[str, tuple[int, ...]]]:
    """Classes with the same text."""
    return dict.fromkeys(names, text)


_T5, _CLIP_L, _CLIP_G = {"cross_attn": (32, 4096)}, {"pooled_output": (768,)}, {"pooled_output": (1280,)}
_QWEN_VL, _GLYPHS = {"cross_attn": (32, 3584)}, {"conditioning_byt5small": (16, 1472)}
_SDXL_TEXT = {"cross_attn": (77, 2048), **_CLIP_G}

TEXTS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    **_alike(("SD15", "SD15_instructpix2pix"), {"cross_attn": (77, 768)}),
    **_alike(("SD20", "SD21UnclipL", "SD21UnclipH"), {"cross_attn": (77, 1024)}),
    **_alike(("SDXL", "SDXL_instructpix2pix", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), _SDXL_TEXT),
    "SDXLRefiner": {"cross_attn": (77, 1280), **_CLIP_G},
    **_alike(("Stable_Cascade_C", "Stable_Cascade_B"), {"cross_attn": (77, 1280), "pooled_output": (1, 1280)}),
    "SD3": {**_T5, "pooled_output": (2048,)},
    **_alike(("GenmoMochi", "LTXV"), {**_T5, "attention_mask": (32,)}),
    "AuraFlow": {"cross_attn": (32, 2048)},
    **_alike(("PixArtAlpha", "PixArtSigma", "Chroma", "ChromaRadiance", "WAN21_T2V", "WAN22_T2V", "CogVideoX_T2V"), _T5),
    **_alike(
        ("HunyuanDiT", "HunyuanDiT1"),
        {"cross_attn": (77, 1024), "attention_mask": (77,), "conditioning_mt5xl": (256, 2048), "attention_mask_mt5xl": (256,)},
    ),
    **_alike(("Flux", "FluxSchnell", "FluxInpaint", "HunyuanVideo"), {**_T5, **_CLIP_L}),
    **_alike(("LongCatImage", "QwenImage"), _QWEN_VL),
    "Flux2": {"cross_attn": (32, 7680)},
    "Lumina2": {"cross_attn": (32, 2304), "attention_mask": (32,)},
    "PixelDiTT2I": {"cross_attn": (32, 2304), "attention_mask": (32,)},
    **_alike(("ZImage", "ZImagePixelSpace", "MageFlow"), {"cross_attn": (32, 2560)}),
    "Anima": {"cross_attn": (512, 1024)},
    **_alike(("CosmosT2IPredict2", "CosmosT2V"), {"cross_attn": (32, 1024)}),
    "HiDream": {"cross_attn": (32, 4096), "pooled_output": (2048,), "conditioning_llama3": (32, 32, 4096)},
    "HiDreamO1": {"text_input_ids": (32,)},
    "HunyuanImage21": {**_QWEN_VL, **_GLYPHS},
    "HunyuanVideo15": {**_QWEN_VL, **_GLYPHS, **_CLIP_L},
    "Omnigen2": {"cross_attn": (32, 2048), "attention_mask": (32,)},
    "Boogu": {"cross_attn": (32, 4096), "attention_mask": (32,)},
    "JoyImage": {"cross_attn": (32, 4096)},
    "Ideogram4": {"cross_attn": (32, 53248)},
    "Krea2": {"cross_attn": (32, 12 * 2560)},
    "Lens": {"cross_attn": (32, 4 * 2880)},
    "ErnieImage": {"cross_attn": (32, 3072)},
    **_alike(("Kandinsky5Image", "Kandinsky5"), {**_QWEN_VL, **_CLIP_L}),
}  # fmt: skip
"""{class: {argument of extra_conds: shape of a text, less the batch}}."""
