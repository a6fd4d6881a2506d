"""Toy models that ComfyUI's own classes and our files backend both build: configurations and weights by a fixed law.

Weights are a function of key and shape alone (no generator of any library), so that fixtures need not hold them.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One toy: how ComfyUI builds it and what it is fed."""

    host_class: str
    """Class in comfy.supported_models."""
    host_config: dict[str, Any]
    family: str
    variant: str
    channels: int
    """Latent channels."""
    context: int
    """Width of the text."""
    tokens: int = 16
    """Length of the text."""
    pooled: int = 0
    """Width of the pooled text; 0 = none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further arguments of extra_conds."""
    video: bool = False
    """Latents have a time axis, of 1 for a picture."""
    references: tuple[tuple[int, int], ...] = ()
    """Rows and columns of the latents of each reference image."""
    sigmas: tuple[float, float] = (0.3, 0.8)


_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "dtype": torch.float32,
}
_SD = {
    **_UNET, "model_channels": 32, "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1, "adm_in_channels": None,
}  # fmt: skip
_WIDE = {**_UNET, "model_channels": 64, "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True}
_FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 128, "num_heads": 1,
    "mlp_ratio": 4.0, "depth": 2, "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
    "context_in_dim": 64, "vec_in_dim": 32, "txt_ids_dims": [], "dtype": torch.float32,
}  # fmt: skip

_FLUX2 = {
    "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "hidden_size": 128, "num_heads": 1,
    "mlp_ratio": 3.0, "depth": 2, "depth_single_blocks": 2, "axes_dim": [32, 32, 32, 32], "theta": 2000, "qkv_bias": False,
    "context_in_dim": 48, "vec_in_dim": None, "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True,
    "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "guidance_embed": False, "dtype": torch.float32,
}  # fmt: skip

TOYS = {
    "sd1": Toy(
        host_class="SD15", family="sd", variant="sd1", channels=4, context=32, sigmas=(0.6, 7.0),
        host_config={**_SD, "context_dim": 32, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False},
    ),
    "sd2": Toy(
        host_class="SD20", family="sd", variant="sd2", channels=4, context=32, sigmas=(0.6, 7.0),
        host_config={**_WIDE, **{k: v for k, v in _SD.items() if k != "model_channels"}, "context_dim": 32},
    ),
    "sdxl": Toy(
        host_class="SDXL", family="sdxl", variant="sdxl", channels=4, context=48, pooled=32, sigmas=(0.6, 7.0),
        extra={"width": 128, "height": 96, "crop_w": 8, "crop_h": 16, "target_width": 112, "target_height": 64},
        host_config={
            **_WIDE, "context_dim": 48, "adm_in_channels": 32 + 6 * 256, "num_classes": "sequential",
            "transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2,
        },
    ),
    "sd3": Toy(
        host_class="SD3", family="sd3", variant="sd3", channels=16, context=64, pooled=64,
        host_config={
            "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 64,
            "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
            "num_patches": 1024, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None, "qk_norm": "rms",
            "x_block_self_attn_layers": [0], "dtype": torch.float32,
        },
    ),
    "flux-dev": Toy(
        host_class="Flux", family="flux", variant="dev", channels=16, context=64, pooled=32, extra={"guidance": 1.0},
        host_config={**_FLUX, "guidance_embed": True},
    ),
    "flux-kontext": Toy(
        host_class="Flux", family="flux", variant="kontext", channels=16, context=64, pooled=32, extra={"guidance": 1.0},
        host_config={**_FLUX, "guidance_embed": True}, references=((12, 6),),
    ),
    "flux-schnell": Toy(
        host_class="FluxSchnell", family="flux", variant="schnell", channels=16, context=64, pooled=32,
        host_config={**_FLUX, "guidance_embed": False},
    ),
    "flux2-klein": Toy(
        host_class="Flux2", family="flux2", variant="klein-base", channels=128, context=48, tokens=512, host_config=_FLUX2,
    ),
    "flux2-dev": Toy(
        host_class="Flux2", family="flux2", variant="dev", channels=128, context=48, tokens=512, extra={"guidance": 1.0},
        host_config={**_FLUX2, "guidance_embed": True}, references=((4, 6), (6, 2)),
    ),
    "chroma": Toy(  # 28 + 2 blocks: the host takes 344 modulations whatever the size, 12 and 3 a block and 2 at the end
        host_class="Chroma", family="chroma", variant="chroma", channels=16, context=48,
        host_config={
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "patch_size": 2, "hidden_size": 32, "num_heads": 1,
            "mlp_ratio": 4.0, "depth": 28, "depth_single_blocks": 2, "axes_dim": [4, 14, 14], "theta": 10000, "qkv_bias": True,
            "context_in_dim": 48, "vec_in_dim": None, "txt_ids_dims": [], "in_dim": 64, "out_dim": 32, "hidden_dim": 24,
            "n_layers": 2, "dtype": torch.float32,
        },
    ),
    "lumina2": Toy(
        host_class="Lumina2", family="lumina2", variant="lumina2", channels=16, context=64,
        extra={"attention_mask": torch.ones(1, 16, dtype=torch.long)},
        host_config={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "n_layers": 2, "n_refiner_layers": 2,
            "n_heads": 4, "n_kv_heads": 2, "axes_dims": [8, 8, 8], "axes_lens": [300, 512, 512], "cap_feat_dim": 64,
            "qk_norm": True, "dtype": torch.float32,
        },
    ),
    "z-image": Toy(
        host_class="ZImage", family="z_image", variant="z-image", channels=16, context=64,
        host_config={
            "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 288, "n_layers": 2, "n_refiner_layers": 1,
            "n_heads": 9, "n_kv_heads": 9, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
            "cap_feat_dim": 64, "qk_norm": True, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
            "time_scale": 1000.0, "pad_tokens_multiple": 32, "dtype": torch.float32,
        },
    ),
    "krea2": Toy(
        host_class="Krea2", family="krea2", variant="raw", channels=16, context=96, video=True,
        host_config={
            "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 32, "heads": 2, "kvheads": 1, "layers": 2, "patch": 2,
            "channels": 16, "txtlayers": 3, "txtheads": 2, "txtkvheads": 2, "dtype": torch.float32,
        },
    ),
    "qwen": Toy(
        host_class="QwenImage", family="qwen_image", variant="qwen-image", channels=16, context=64, video=True,
        host_config={
            "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "attention_head_dim": 32,
            "num_attention_heads": 2, "joint_attention_dim": 64, "axes_dims_rope": (4, 14, 14), "dtype": torch.float32,
        },
    ),
    # Families that the pack has no file for: their layers are found by structure.
    "aura": Toy(
        host_class="AuraFlow", family="", variant="", channels=4, context=64,
        host_config={
            "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 256, "n_layers": 3, "n_double_layers": 1,
            "n_heads": 1, "global_conddim": 256, "cond_seq_dim": 64, "max_seq": 256, "dtype": torch.float32,
        },
    ),
    "wan": Toy(
        host_class="WAN21_T2V", family="", variant="", channels=16, context=64, video=True,
        host_config={
            "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 128, "ffn_dim": 256,
            "freq_dim": 64, "text_dim": 64, "num_heads": 2, "num_layers": 2, "dtype": torch.float32,
        },
    ),
}  # fmt: skip
TOYS["qwen-edit"] = replace(TOYS["qwen"], variant="qwen-image-edit", references=((20, 8),))
TOYS["qwen-edit-plus"] = replace(TOYS["qwen"], variant="qwen-image-edit-plus", references=((20, 8), (8, 12)))
TOYS["qwen-edit-2511"] = replace(
    TOYS["qwen-edit-plus"], host_config={**TOYS["qwen"].host_config, "default_ref_method": "index_timestep_zero"}
)
"""References have a clock of their own. Not every version of the host knows it, so it is recorded apart."""
TOYS["flux-kontext-two"] = replace(TOYS["flux-kontext"], references=((12, 6), (4, 10)))

HEADLESS = (
    "sd1", "sd2", "sdxl", "sd3", "flux-dev", "flux-kontext", "flux-kontext-two", "flux-schnell", "flux2-klein",
    "flux2-dev", "chroma", "krea2", "lumina2", "z-image", "qwen", "qwen-edit", "qwen-edit-plus",
)  # fmt: skip
"""Toys whose family the files backend has."""


def hashed_uniform(name: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1): splitmix64 of (crc32 of the name, index)."""
    state = np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    with np.errstate(over="ignore"):
        z = (state + np.arange(count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2**52 - 1


def toy_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of a sensible size: 1 + noise for norms, scaled by the fan-in for matrices."""
    values = hashed_uniform(key, math.prod(shape))
    norm = key.endswith(
        (".scale", "norm.weight", "ln_q.weight", "ln_k.weight", "norm1.weight", "norm2.weight", "norm3.weight")
    )
    if len(shape) == 1:
        values = (1 + 0.1 * values) if norm or (key.endswith(".weight") and "layers.0" in key) else 0.1 * values
    else:
        values *= math.sqrt(3 / math.prod(shape[1:]))
    return torch.from_numpy(values.reshape(shape)).float()


def toy_inputs(toy: Toy) -> dict[str, Tensor]:
    """Two noisy latents of 8 x 12, their noise levels, and conditioning; the same references for both."""
    inputs = {
        "latents": toy_tensor("input.latents", (2, toy.channels, 8, 12)) * 40,
        "noise": toy_tensor("input.noise", (2, toy.channels, 8, 12)) * 40,
        "sigma": torch.tensor(toy.sigmas),
        "text": toy_tensor("input.text", (2, toy.tokens, toy.context)) * 20,
    }
    if toy.pooled:
        inputs["pooled"] = toy_tensor("input.pooled", (2, toy.pooled)) * 5
    for number, size in enumerate(toy.references):  # raw, as a VAE gives them
        name = f"reference_{number + 1}" if number else "reference"
        inputs[name] = toy_tensor(f"input.{name}", (1, toy.channels, *size)) * 40
    return inputs


PRODUCTS = 3


def gradient_summary(gradients: Mapping[str, Tensor]) -> Tensor:
    """(weights, 1 + PRODUCTS) in float64, sorted by name: |G| and <G, R_k>, for R_k of numbers in [-1, 1) by the same law.

    Stands for the gradients themselves, which a fixture would be too large with.
    """
    rows = []
    for name in sorted(gradients):
        flat = gradients[name].double().flatten()
        fixed = [torch.from_numpy(hashed_uniform(f"{name} {k}", flat.numel())) for k in range(PRODUCTS)]
        rows.append([flat.norm().item(), *(torch.dot(flat, matrix).item() for matrix in fixed)])
    return torch.tensor(rows, dtype=torch.float64)
