"""Flux.1 dev, schnell, krea and kontext: rectified flow on packed 2x2 latents, rotary positions, CLIP-L pooled and T5.

All but schnell are guidance-distilled: the network is fed a guidance value, 1.0 while training. Kontext is dev trained
on reference images, whose clean latents follow the noisy ones (arXiv 2506.15742).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.packing import pack, position_ids, reference_places, unpack
from ..diffusion.timesteps import ResolutionShift
from ..types import Conditioning, Geometry, Shapes, references_in
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import (
    ClipText,
    KlCodec,
    T5Text,
    clip_tokens,
    load_network,
    load_tokenizer,
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
from .common.keymap import KeyMap, count_blocks, rename
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.native.flux_keys import NAMES_OF_FLUX2, double_keys, head_width, names_of_flux2, single_keys
from .common.source import Source
from .common.tiny import random_network, tiny_clip, tiny_t5, tiny_vae

NAME = "flux"
SAMPLING = FlowMatching(shift=3.1582, levels=10000)  # exp(1.15), ComfyUI's and the papers' value at 1024 px
MOST_REFERENCES = 10
"""Nothing in the network limits them: they are laid side by side, as ComfyUI lays chained reference latents."""
_DEV = Variant(
    objective=SAMPLING,
    training_shift=ResolutionShift(),
    guidance_embedding=True,
    distilled="guidance",
    guidance_scale=1.0,
    max_text_tokens=512,
    text_options=("t5_attention_mask",),
)
VARIANTS = {
    "dev": _DEV,
    "krea": _DEV,
    "kontext": replace(_DEV, references=MOST_REFERENCES),
    "fluxbooru": replace(_DEV, distilled="no", guidance_scale=3.5),
    "libreflux": Variant(
        objective=SAMPLING,
        training_shift=ResolutionShift(),
        guidance_scale=3.5,
        max_text_tokens=512,
        text_options=("t5_attention_mask",),
        text_always=("t5_attention_mask",),
    ),
    "schnell": Variant(
        objective=FlowMatching(shift=1.0),
        distilled="steps",
        guidance_scale=1.0,
        max_text_tokens=256,
        text_options=("t5_attention_mask",),
    ),
}
_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_BLOCKS = r"(^|\.)(single_)?transformer_blocks\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCKS}({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out|norm1?(_context)?\.linear)$",
        "attention, feed-forward and modulation in the blocks",
    ),
    "attention": Targets(rf"{_BLOCKS}{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(
        rf"{_BLOCKS}({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)$", "attention and feed-forward"
    ),
    "all": Targets(
        rf"{_BLOCKS}({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out|norm1?(_context)?\.linear)$|^(x_embedder|context_embedder|proj_out)$|embedder\.linear_[12]$",
        "every Linear that keeps its rows in the host",
    ),
}
_CONTEXT = r"attn\.(add_[qkv]_proj|to_add_out)"
TARGETS |= {  # the words of SimpleTuner's guides (its flux_lora_target), but "all", which means more here
    "mmdit": Targets(rf"{_BLOCKS}attn\.(to_[qkv]|to_out\.0)$", "attention of the image alone"),
    "context": Targets(rf"{_BLOCKS}{_CONTEXT}$", "attention of the text alone"),
    "context+ffs": Targets(
        rf"{_BLOCKS}({_CONTEXT}|ff_context\.net\.(0\.proj|2))$", "attention and feed-forward of the text"
    ),
    "all+ffs": TARGETS["attention+mlp"],
    "tiny": Targets(r"(^|\.)single_transformer_blocks\.(7|20)\.proj_out$", "the output of two single blocks"),
    "nano": Targets(r"(^|\.)single_transformer_blocks\.7\.proj_out$", "the output of one single block"),
}

LORA_NAMES = LoraNames(
    prefixes=("transformer.", "lora_transformer_", "lycoris_", ""),
    diffusers=rf"transformer_blocks\.\d+\.({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear)"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)|x_embedder|context_embedder|proj_out|norm_out\.linear"
    r"|time_text_embed\.(timestep|guidance|text)_embedder\.linear_[12]",
    native=r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02]|mod\.lin)|single_blocks\.\d+\.(linear[12]|modulation\.lin)"
    r"|img_in|txt_in|final_layer\.(linear|adaLN_modulation\.1)|(time|guidance|vector)_in\.(in|out)_layer",
    sizes={r"attn[._]to_q$": (3072,)},
    aliases=names_of_flux2,
    alias_names=NAMES_OF_FLUX2,
    attention_rows=r"single_blocks\.\d+\.linear1",
)
COMFY = ComfyModel(
    model_classes=("Flux",),
    block_classes=("DoubleStreamBlock", "SingleStreamBlock"),
    clip_loader="DualCLIPLoader",
    clip_inputs={"clip_name1": "t5xxl_fp16.safetensors", "clip_name2": "clip_l.safetensors", "type": "flux"},
    vae_name="ae.safetensors",
)


def native_keys(double: int, single: int, hidden: int, mlp: int, *, guidance: bool) -> KeyMap:
    """Returns {diffusers key: original key} for `double` + `single` blocks of width `hidden` and feed-forward width `mlp`."""
    keys = rename([("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")])
    keys |= rename([("final_layer.adaLN_modulation.1", "norm_out.linear")], swap_halves=True)
    embedders = [("time_in", "timestep_embedder"), ("vector_in", "text_embedder")]
    embedders += [("guidance_in", "guidance_embedder")] if guidance else []
    for native, diffusers in embedders:
        stem = f"time_text_embed.{diffusers}"
        keys |= rename([(f"{native}.in_layer", f"{stem}.linear_1"), (f"{native}.out_layer", f"{stem}.linear_2")])
    for i in range(double):
        keys |= double_keys(f"double_blocks.{i}", f"transformer_blocks.{i}", hidden)
    for i in range(single):
        keys |= single_keys(f"single_blocks.{i}", f"single_transformer_blocks.{i}", hidden, mlp)
    return keys


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """FluxTransformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, channels = shapes["img_in.weight"]
    double, single = count_blocks(shapes, "double_blocks"), count_blocks(shapes, "single_blocks")
    head = head_width(shapes)
    guidance = "guidance_in.in_layer.weight" in shapes
    mlp = shapes["single_blocks.0.linear1.weight"][0] - 3 * hidden
    config: dict[str, object] = {
        "in_channels": channels,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": guidance,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),  # 16, 56, 56 of 128
    }
    return config, native_keys(double, single, hidden, mlp, guidance=guidance)


@dataclass(kw_only=True)
class FluxDenoiser(DiffusersDenoiser):
    """Packs latents and references into tokens with positions and reads the image's tokens back. Texts of unequal length, which
    only masked ones have, are run one length at a time."""

    @property
    def guided(self) -> bool:
        """Whether the network takes a guidance value."""
        return bool(self.module.config.guidance_embeds)  # type: ignore[union-attr]

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        return by_length(self._predict, noisy_BCHW, sigma_B, conditioning)

    def _predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        text_BLD = conditioning["text"].to(self.dtype)
        tokens_BLD, ids = pack(noisy_BCHW), position_ids(height, width)
        count = tokens_BLD.shape[1]
        tokens_BLD, ids = _with_references(tokens_BLD, ids, references_in(conditioning))
        predicted_BLD = self.module(
            hidden_states=tokens_BLD.to(self.dtype),
            encoder_hidden_states=text_BLD,
            pooled_projections=conditioning["pooled"].to(self.dtype),
            timestep=sigma_B.to(self.dtype),
            guidance=conditioning["guidance"].to(self.dtype) if self.guided else None,
            img_ids=ids.to(noisy_BCHW.device),
            txt_ids=torch.zeros(text_BLD.shape[1], 3, device=noisy_BCHW.device),
            return_dict=False,
        )[0]
        return unpack(predicted_BLD[:, :count], height, width).float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


def _with_references(tokens_BLD: Tensor, ids: Tensor, latents_BCHW: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and positions of the image, followed by those of its reference images."""
    sizes = [(one.shape[-2], one.shape[-1]) for one in latents_BCHW]
    behind = [
        position_ids(rows, columns, index=1, top=top, left=left)
        for (rows, columns), (top, left) in zip(sizes, reference_places(sizes), strict=True)
    ]
    return torch.cat([tokens_BLD, *map(pack, latents_BCHW)], dim=1), torch.cat([ids, *behind])


class FluxText:
    """Pooled CLIP-L and the T5 sequence."""

    def __init__(self, clip: ClipText, t5: T5Text) -> None:
        self.clip, self.t5 = clip, t5

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        _, pooled_BP = self.clip(prompts)
        return [{"text": text, "pooled": pooled} for text, pooled in zip(self.t5(prompts), pooled_BP, strict=True)]


class Flux:
    """The family of Flux.1."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=16, scale=0.3611, shift=0.1159)
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        double = widths.blocks("transformer_blocks", "double_blocks")
        single = widths.blocks("single_transformer_blocks", "single_blocks")
        return native_keys(double, single, widths.hidden, 4 * widths.hidden, guidance=True)

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        native = "double_blocks.0.img_attn.qkv.weight" in shapes and "vector_in.in_layer.weight" in shapes
        chroma = any(key.startswith("distilled_guidance_layer.") for key in shapes)
        diffusers = "single_transformer_blocks.0.proj_mlp.weight" in shapes and not chroma
        if not (native or diffusers):
            return None
        return "dev" if any("guidance_in." in key or "guidance_embedder" in key for key in shapes) else "schnell"

    def told_variant(self, source: Source, variant: str) -> str:
        """Kontext's weights have dev's names and shapes; a diffusers folder says whose pipeline they are."""
        return "kontext" if variant == "dev" and source.pipeline == "FluxKontextPipeline" else variant

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        blocks = config["num_layers"], config["num_single_layers"]
        return native_keys(*blocks, hidden, 4 * hidden, guidance=config["guidance_embeds"])

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> FluxDenoiser:
        from diffusers import FluxTransformer2DModel

        return _denoiser(load(FluxTransformer2DModel, source, read_native, loading), variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import CLIPTextModel, T5EncoderModel

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        clip = load_network(CLIPTextModel, folder, "text_encoder", loading)
        t5 = load_network(T5EncoderModel, folder, "text_encoder_2", loading)
        text = FluxText(
            ClipText(clip, load_tokenizer(folder, "tokenizer"), max_tokens=clip_tokens(clip)),
            T5Text(
                t5,
                load_tokenizer(folder, "tokenizer_2"),
                max_tokens=VARIANTS[variant].max_text_tokens,
                masked=reading.t5_attention_mask,
            ),
        )
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_unequal(texts) | {"guidance": torch.full((len(texts),), guidance)}

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import FluxTransformer2DModel

        config = {
            "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
        }  # fmt: skip
        clip, t5 = tiny_clip(seed + 1, projection=False), tiny_t5(seed + 2, width=32)
        text = FluxText(ClipText(*clip, max_tokens=16), T5Text(*t5, max_tokens=16))
        vae = tiny_vae(seed, 16)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(FluxTransformer2DModel, config, seed), "dev"),
            encoders=Encoders(text, KlCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": clip, "text_encoder_2": t5},
        )


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> FluxDenoiser:
    objective = VARIANTS[variant].objective
    return FluxDenoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )


FAMILY = Flux()
