"""Roles of the layers of ComfyUI's own network classes, at their published sizes, on the meta device: {network: {role: count}}."""

from collections import Counter

from .toys import answer, import_pack, torch

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
KLEIN = {
    **FLUX, "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None, "context_in_dim": 7680, "mlp_ratio": 3.0,
    "depth": 5, "depth_single_blocks": 20, "axes_dim": [32] * 4, "theta": 2000, "qkv_bias": False, "guidance_embed": False,
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "n_layers": 26, "n_refiner_layers": 2, "n_heads": 24,
    "n_kv_heads": 8, "axes_dims": [32] * 3, "axes_lens": [300, 512, 512], "cap_feat_dim": 2304, "qk_norm": True,
}  # fmt: skip
Z_IMAGE = {
    **LUMINA, "dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "cap_feat_dim": 2560, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0,
}  # fmt: skip
ANIMA = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 2048, "num_blocks": 28, "num_heads": 16, "concat_padding_mask": True,
    "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "use_adaln_lora": True,
    "adaln_lora_dim": 256,
}  # fmt: skip
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64,
    "legacy": False, "use_temporal_attention": False,
}  # fmt: skip
AURA = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 3072, "n_layers": 36, "n_heads": 12, "global_conddim": 3072,
    "cond_seq_dim": 2048, "max_seq": 4096,
}  # fmt: skip
HIDREAM = {
    "image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32,
    "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
    "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": list(range(48)),
}  # fmt: skip
OMNIGEN = {
    "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 2520, "num_layers": 32, "num_refiner_layers": 2,
    "num_attention_heads": 21, "num_kv_heads": 7, "multiple_of": 256, "norm_eps": 1e-5, "axes_dim_rope": (40, 40, 40),
    "axes_lens": (1024, 1664, 1664), "text_feat_dim": 2048, "timestep_scale": 1000.0,
}  # fmt: skip
WAN = {
    "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 5120, "ffn_dim": 13824, "freq_dim": 256, "text_dim": 4096,
    "num_heads": 40, "num_layers": 40,
}  # fmt: skip
NETWORKS = {
    "Flux dev": ("flux.model", "Flux", FLUX),
    "FLUX.2 Klein 4B": ("flux.model", "Flux", KLEIN),
    "Lumina 2": ("lumina.model", "NextDiT", LUMINA),
    "Z-Image": ("lumina.model", "NextDiT", Z_IMAGE),
    "Qwen-Image": ("qwen_image.model", "QwenImageTransformer2DModel", {"image_model": "qwen_image", "in_channels": 64}),
    "Wan 2.1 14B": ("wan.model", "WanModel", WAN),
    "AuraFlow": ("aura.mmdit", "MMDiT", AURA),
    "HiDream I1": ("hidream.model", "HiDreamImageTransformer2DModel", HIDREAM),
    "Omnigen2": ("omnigen.omnigen2", "OmniGen2Transformer2DModel", OMNIGEN),
    "Anima": ("anima.model", "Anima", ANIMA),
    "Krea 2": ("krea2.model", "SingleStreamDiT", {}),
    "SDXL": ("modules.diffusionmodules.openaimodel", "UNetModel", SDXL),
}


def main():
    import importlib

    import comfy.ops

    loom = import_pack()
    shared = {"dtype": torch.bfloat16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    found = {}
    for name, (module, cls, config) in NETWORKS.items():
        try:
            make = getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)
        except ImportError:  # an older version has fewer networks
            continue
        with torch.device("meta"):
            network = make(**config, **shared)
        found[name] = Counter(loom("trainer.lora.roles").roles(network).values())
    answer(found)


if __name__ == "__main__":
    main()
