"""Stable Diffusion 3 and 3.5: rectified flow, joint attention, 16-channel latents (arXiv 2403.03206).

Text: CLIP-L and CLIP-G penultimate layers side by side, padded to T5's width, then T5 behind them; pooled = L and G.
A base with a single CLIP whose width is the network's own context width (the demo base) uses that alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..errors import ConfigError
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import (
    ClipText,
    KlCodec,
    T5Text,
    load_network,
    load_tokenizer,
    penultimate,
    side_by_side,
)
from .common.family import (
    DEFAULT_PROMPT_ENCODING,
    ComfyModel,
    DiffusersDenoiser,
    Encoders,
    LatentSpace,
    Loading,
    PromptEncoding,
    Text,
    Tiny,
    Variant,
    by_length,
    stack_unequal,
)
from .common.keymap import KeyMap, count_blocks
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.native.sd3_keys import native_keys
from .common.source import Source, read_json
from .common.tiny import random_network, tiny_clip, tiny_t5, tiny_vae

NAME = "sd3"
VARIANTS = {
    "sd3": Variant(
        objective=FlowMatching(shift=3.0),
        training_shift=3.0,
        guidance_scale=5.0,
        max_text_tokens=256,
        by_length=True,
        text_options=("clip_tokens", "t5_attention_mask"),
    ),
}
USUAL_T5_TOKENS = 154
"""T5's part is padded to this length where the prompt fits, as SimpleTuner does; longer prompts have what SD3.5 was trained with."""
POOLED = ("time_text_embed.text_embedder.linear_1.weight", "y_embedder.mlp.0.weight")
TARGETS = {
    "default": Targets(
        r"transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|norm1\.linear)$",
        "attention, feed-forward and modulation in the blocks",
    ),
    "attention": Targets(
        r"transformer_blocks\.\d+\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
        "all projections of attention",
    ),
    "attention+mlp": Targets(
        r"transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2))$",
        "attention and feed-forward",
    ),
    "all": Targets(
        r"transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)|norm1\.linear)$|(context_embedder|embedder\.linear_[12])$",
        "every Linear that keeps its rows in the host",
    ),
}


def targets_of(layers: int) -> dict[str, Targets]:
    """The presets for a network of `layers` blocks, less what cannot learn: the last block's text asks, and its answer is dropped."""
    idle = rf"(?!^transformer_blocks\.{layers - 1}\.attn\.add_q_proj$)"
    return {name: Targets(f"{idle}(?:{target.pattern})", target.description) for name, target in TARGETS.items()}


LORA_NAMES = LoraNames(
    prefixes=("transformer.", "base_model.model.", "lora_transformer_", "lycoris_"),
    diffusers=r"transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.net\.(0\.proj|2)"
    r"|norm1(_context)?\.linear)|context_embedder|pos_embed\.proj|proj_out|norm_out\.linear|time_text_embed\.(timestep|text)_embedder\.linear_[12]",
    native=r"joint_blocks\.\d+\.(x|context)_block\.(attn2?\.(qkv|proj)|mlp\.fc[12]|adaLN_modulation\.1)|context_embedder"
    r"|x_embedder\.proj|final_layer\.(linear|adaLN_modulation\.1)|[ty]_embedder\.mlp\.[02]",
    sizes={r"attn[._]to_q$": (1536, 2432)},
)


COMFY = ComfyModel(
    model_classes=("SD3",),
    block_classes=("JointBlock",),
    clip_loader="TripleCLIPLoader",
    clip_inputs={
        "clip_name1": "clip_l.safetensors",
        "clip_name2": "clip_g.safetensors",
        "clip_name3": "t5xxl_fp16.safetensors",
    },
    vae_name="sd3_vae.safetensors",
)


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """SD3Transformer2DModel's configuration, read off the original file's shapes, and its key map."""
    depth = count_blocks(shapes, "joint_blocks")
    hidden, latent_channels, patch, _ = shapes["x_embedder.proj.weight"]
    dual = tuple(i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes)
    qk_norm = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    head = shapes["joint_blocks.0.x_block.attn.ln_q.weight"][0] if qk_norm else 64
    context_out, context_in = shapes["context_embedder.weight"]
    config: dict[str, object] = {
        "num_layers": depth,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "in_channels": latent_channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "patch_size": patch,
        "joint_attention_dim": context_in,
        "caption_projection_dim": context_out,
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": dual,
        "qk_norm": "rms_norm" if qk_norm else None,
    }
    return config, native_keys(depth, hidden, dual=dual, qk_norm=qk_norm)


@dataclass(kw_only=True)
class SD3Denoiser(DiffusersDenoiser):
    """Runs texts of unequal length one length at a time."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        return by_length(self._predict, noisy_BCHW, sigma_B, conditioning)

    def _predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        output = self.module(
            hidden_states=noisy_BCHW.to(self.dtype),
            timestep=sigma_B * 1000,
            encoder_hidden_states=conditioning["text"].to(self.dtype),
            pooled_projections=conditioning["pooled"].to(self.dtype),
            return_dict=False,
        )
        return output[0].float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


class SD3Text:
    """CLIP-L and CLIP-G side by side, followed by T5; or one CLIP alone. Without a T5 its tokens are left out."""

    def __init__(self, clips: list[ClipText], t5: T5Text | None, width: int) -> None:
        self.clips, self.t5, self.width = clips, t5, width

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        parts = [clip(prompts) for clip in self.clips]
        texts = side_by_side(parts[0][0], parts[1][0]) if len(parts) > 1 else parts[0][0]
        texts = [F.pad(text_LD, (0, self.width - text_LD.shape[-1])) for text_LD in texts]
        if self.t5 is not None:
            texts = [torch.cat(pair) for pair in zip(texts, self.t5(prompts), strict=True)]
        pooled_BP = torch.cat([pooled for _, pooled in parts], dim=-1)
        return [{"text": text, "pooled": pooled} for text, pooled in zip(texts, pooled_BP, strict=True)]


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> SD3Denoiser:
    objective = VARIANTS[variant].objective
    targets = targets_of(len(module.transformer_blocks))  # type: ignore[arg-type]
    return SD3Denoiser(
        family=NAME, module=module, objective=objective, target_presets=targets, compute_dtype=compute_dtype
    )


class SD3:
    """The family of Stable Diffusion 3 and 3.5."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=16, scale=1.5305, shift=0.0609)
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        """The network's last block, which alone has its modulation the other way round, is told by the rows of it; without it the map has
        one block more than the file reaches to."""
        depth = widths.blocks("transformer_blocks", "joint_blocks")
        text = rf"[._]{depth - 1}[._](norm1_context[._]linear|context_block[._]adaLN_modulation[._]1)$"
        is_last = widths.rows(text) == 2 * widths.width(text) > 0
        return native_keys(
            depth + 1, widths.hidden, dual=range(depth), qk_norm=False, last=depth - 1 if is_last else depth
        )

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return targets_of(count_blocks(paths, "transformer_blocks"))

    def detect(self, shapes: Shapes) -> str | None:
        native = "joint_blocks.0.x_block.attn.qkv.weight" in shapes
        diffusers = "transformer_blocks.0.attn.add_q_proj.weight" in shapes and "pos_embed.pos_embed" in shapes
        return "sd3" if native or diffusers else None

    def told_variant(self, source: Source, variant: str) -> str:
        return variant

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        dual, qk_norm = config["dual_attention_layers"], config["qk_norm"] is not None
        return native_keys(config["num_layers"], hidden, dual=dual, qk_norm=qk_norm)

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> SD3Denoiser:
        from diffusers import SD3Transformer2DModel

        module = load(SD3Transformer2DModel, source, read_native, loading)
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        """Both CLIPs, or one alone whose pooled vector is as wide as the network wants it; T5 may be absent."""
        folder = source.encoder_folder()
        found = [s for s in ("", "_2") if (folder / f"text_encoder{s}").is_dir()]
        widths = [read_json(folder / f"text_encoder{s}" / "config.json").get("projection_dim") for s in found]
        wanted = next((source.shapes[key][1] for key in POOLED if key in source.shapes), None)
        clips = found if widths == [wanted] else ["", "_2"]
        t5 = ["_3"] if (folder / "text_encoder_3").is_dir() else []
        return (*(f"{kind}{s}" for s in [*clips, *t5] for kind in ("text_encoder", "tokenizer")), "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        if reading.t5_attention_mask and not (folder / "text_encoder_3").is_dir():
            raise ConfigError(f"text.t5_attention_mask = True: {folder} has no T5 (text_encoder_3); leave it out")
        width = source.shapes.get("context_embedder.weight", (0, 4096))[1]
        clips = []
        for suffix in ("", "_2"):
            if (folder / f"text_encoder{suffix}").is_dir():
                module = load_network(CLIPTextModelWithProjection, folder, f"text_encoder{suffix}", loading)
                tokenizer = load_tokenizer(folder, f"tokenizer{suffix}")
                clips.append(penultimate(module, tokenizer, chunks=reading.clip_tokens // 75))
        t5 = None
        if (folder / "text_encoder_3").is_dir():
            module = load_network(T5EncoderModel, folder, "text_encoder_3", loading)
            most = VARIANTS[variant].max_text_tokens
            tokenizer, masked = load_tokenizer(folder, "tokenizer_3"), reading.t5_attention_mask
            t5 = T5Text(module, tokenizer, max_tokens=most, usual=USUAL_T5_TOKENS, masked=masked)
        return Encoders(SD3Text(clips, t5, width), codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_unequal(texts)

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import SD3Transformer2DModel

        config = {
            "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32,
            "joint_attention_dim": 72, "pooled_projection_dim": 64, "pos_embed_max_size": 16, "sample_size": 16,
            "qk_norm": "rms_norm", "dual_attention_layers": (0,),
        }  # fmt: skip
        clips = [tiny_clip(seed + i, projection=True) for i in (1, 2)]
        t5 = tiny_t5(seed + 3, width=72)
        text = SD3Text([penultimate(*clip) for clip in clips], T5Text(*t5, max_tokens=16), 72)
        vae = tiny_vae(seed, 16)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(SD3Transformer2DModel, config, seed), "sd3"),
            encoders=Encoders(text, KlCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": clips[0], "text_encoder_2": clips[1], "text_encoder_3": t5},
        )


FAMILY = SD3()
