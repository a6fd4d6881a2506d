"""Krea 2 RAW and Turbo: rectified flow, one stream over text and packed 2x2 latents; text from twelve layers of Qwen3-VL-4B.

RAW and Turbo have tensors of the same names and shapes; a diffusers folder or the name of the file says which of them it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.packing import pack, position_ids, unpack
from ..diffusion.timesteps import ResolutionShift
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import FrameCodec, load_network, load_tokenizer
from .common.family import (
    DEFAULT_PROMPT_ENCODING,
    ComfyModel,
    DiffusersDenoiser,
    Encoders,
    Loading,
    PromptEncoding,
    Text,
    Tiny,
    Variant,
    pad_and_mask,
)
from .common.keymap import KeyMap, Part, count_blocks, rename
from .common.latent_spaces import QWEN_LATENTS
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.newer_classes import newer_class
from .common.source import Source
from .common.text.chat_text import ChatText
from .common.text.qwen_text import TEMPLATE_HEAD, TEMPLATE_TAIL, template_tokens
from .common.tiny import random_network, tiny_frame_vae, tiny_qwen3_vl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "krea2"
_RAW = Variant(
    objective=FlowMatching(shift=3.1582, levels=10000),  # exp(1.15), ComfyUI's for both
    training_shift=ResolutionShift(max_tokens=6400),  # diffusers' pipeline of RAW
    guidance_scale=5.5,  # 4.5 in Krea's own counting, which starts at 0
    max_text_tokens=512,
    hides_padding=True,
)
VARIANTS = {
    "raw": _RAW,
    "turbo": replace(_RAW, training_shift=3.1582, guidance_scale=1.0, distilled="steps"),
}
TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Hidden states of Qwen3-VL's 36 layers that the network reads; the first are the embeddings."""
_ATTENTION = r"attn\.(to_[qkv]|to_gate|to_out\.0)"
_MLP = r"ff\.(gate|up|down)"
_BLOCK = r"^transformer_blocks\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCK}({_ATTENTION}|{_MLP})$",
        "attention with its gate and feed-forward in the blocks, which share one modulation",
    ),
    "attention": Targets(rf"{_BLOCK}{_ATTENTION}$", "all projections of attention and its gate"),
    "attention+mlp": Targets(rf"{_BLOCK}({_ATTENTION}|{_MLP})$", "attention and feed-forward"),
    "all": Targets(r"^.", "every Linear, those that fuse the text encoder's layers among them"),
}
_FUSION = r"(layerwise|refiner)_blocks\.\d+"
LORA_NAMES = LoraNames(
    prefixes=("transformer.", "diffusion_model.", "lycoris_", ""),
    diffusers=rf"(transformer_blocks\.\d+|text_fusion\.{_FUSION})\.({_ATTENTION}|{_MLP})|img_in|time_embed\.linear_[12]"
    r"|time_mod_proj|txt_in\.linear_[12]|text_fusion\.projector|final_layer\.linear",
    native=rf"(blocks\.\d+|txtfusion\.{_FUSION})\.(attn\.(w[qkvo]|gate)|mlp\.(gate|up|down))|first|tmlp\.[02]|tproj\.1"
    r"|txtmlp\.[13]|txtfusion\.projector|last\.linear",
    sizes={r"attn[._](to[._]q|wq)$": (6144,)},
    aliases=lambda keymap: {
        key.replace(".to_out.0.", ".to_out."): part for key, part in keymap.items() if ".to_out.0." in key
    },
    alias_names=rf"(transformer_blocks\.\d+|text_fusion\.{_FUSION})\.attn\.to_out",
)
COMFY = ComfyModel(
    model_classes=("Krea2",),
    block_classes=("SingleStreamBlock",),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "qwen3vl_4b.safetensors", "type": "krea2"},
    vae_name="qwen_image_vae.safetensors",
)
_ENDS = (
    ("first", "img_in"), ("tmlp.0", "time_embed.linear_1"), ("tmlp.2", "time_embed.linear_2"), ("tproj.1", "time_mod_proj"),
    ("txtmlp.1", "txt_in.linear_1"), ("txtmlp.3", "txt_in.linear_2"), ("last.linear", "final_layer.linear"),
)  # fmt: skip
_INNER = (
    ("attn.wq", "attn.to_q"), ("attn.wk", "attn.to_k"), ("attn.wv", "attn.to_v"), ("attn.gate", "attn.to_gate"),
    ("attn.wo", "attn.to_out.0"), ("mlp.gate", "ff.gate"), ("mlp.up", "ff.up"), ("mlp.down", "ff.down"),
)  # fmt: skip
_NORMS = (
    ("prenorm", "norm1"), ("postnorm", "norm2"), ("attn.qknorm.qnorm", "attn.norm_q"), ("attn.qknorm.knorm", "attn.norm_k"),
)  # fmt: skip


def native_keys(layers: int, layerwise: int, refiners: int) -> KeyMap:
    """Returns {diffusers key: original key} for `layers` blocks and the blocks that fuse the text encoder's layers."""
    keys = rename(_ENDS) | rename([("txtfusion.projector", "text_fusion.projector")], (".weight",))
    keys["txt_in.norm.weight"] = Part("txtmlp.0.scale")
    keys["final_layer.norm.weight"] = Part("last.norm.scale")
    keys["final_layer.scale_shift_table"] = Part("last.modulation.lin")
    for i in range(layers):
        keys |= _block_keys(f"blocks.{i}", f"transformer_blocks.{i}")
        keys[f"transformer_blocks.{i}.scale_shift_table"] = Part(f"blocks.{i}.mod.lin", table=6)
    for kind, count in (("layerwise_blocks", layerwise), ("refiner_blocks", refiners)):
        for i in range(count):
            keys |= _block_keys(f"txtfusion.{kind}.{i}", f"text_fusion.{kind}.{i}")
    return keys


def _block_keys(native: str, block: str) -> KeyMap:
    keys = rename([(f"{native}.{old}", f"{block}.{new}") for old, new in _INNER], (".weight",))
    return keys | {f"{block}.{new}.weight": Part(f"{native}.{old}.scale") for old, new in _NORMS}


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """Krea2Transformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, channels = shapes["first.weight"]
    text = shapes["txtmlp.1.weight"][1]
    head = shapes["blocks.0.attn.qknorm.qnorm.scale"][0]
    fusion = "txtfusion.layerwise_blocks.0"
    text_head = shapes[f"{fusion}.attn.qknorm.qnorm.scale"][0]
    layerwise, refiners = (count_blocks(shapes, f"txtfusion.{kind}_blocks") for kind in ("layerwise", "refiner"))
    config: dict[str, object] = {
        "in_channels": channels,
        "num_layers": count_blocks(shapes, "blocks"),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": shapes["blocks.0.attn.wk.weight"][0] // head,
        "intermediate_size": shapes["blocks.0.mlp.up.weight"][0],
        "timestep_embed_dim": shapes["tmlp.0.weight"][1],
        "text_hidden_dim": text,
        "num_text_layers": shapes["txtfusion.projector.weight"][1],
        "text_num_attention_heads": text // text_head,
        "text_num_key_value_heads": shapes[f"{fusion}.attn.wk.weight"][0] // text_head,
        "text_intermediate_size": shapes[f"{fusion}.mlp.up.weight"][0],
        "num_layerwise_text_blocks": layerwise,
        "num_refiner_text_blocks": refiners,
        "axes_dims_rope": (head - 12 * (head // 16), 6 * (head // 16), 6 * (head // 16)),  # 32, 48, 48 of 128
    }
    return config, native_keys(count_blocks(shapes, "blocks"), layerwise, refiners)


def network_class() -> type[nn.Module]:
    """Returns diffusers' class. Raises ConfigError where the installed version has none."""
    found: type[nn.Module] = newer_class("diffusers", "Krea2Transformer2DModel")
    return found


@dataclass(kw_only=True)
class Krea2Denoiser(DiffusersDenoiser):
    """Packs latents into tokens behind the text's and reads them back."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        text_BLD, mask_BL = conditioning["text"], conditioning["text_mask"].bool()
        places_LP = position_ids(height, width).to(noisy_BCHW.device)
        config: Any = self.module.config
        predicted_BLD = self.module(
            hidden_states=pack(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=text_BLD.unflatten(2, (config.num_text_layers, -1)).to(self.dtype),
            timestep=sigma_B.to(self.dtype),
            position_ids=torch.cat([places_LP.new_zeros(text_BLD.shape[1], 3), places_LP]),
            encoder_attention_mask=None if bool(mask_BL.all()) else mask_BL,
            return_dict=False,
        )[0]
        return unpack(predicted_BLD, height, width).float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> Krea2Denoiser:
    objective = VARIANTS[variant].objective
    return Krea2Denoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )


def _set_norms(module: nn.Module, value: Callable[[Tensor], Tensor]) -> None:
    for layer in module.modules():
        if not isinstance(layer, nn.Linear) and isinstance(getattr(layer, "weight", None), nn.Parameter):
            layer.weight = nn.Parameter(value(cast(Tensor, layer.weight).detach()), requires_grad=False)


def tapped_text(
    module: nn.Module, tokenizer: "PreTrainedTokenizerBase", length: int, taps: tuple[int, ...] = TAPS
) -> ChatText:
    """Qwen-Image's template, without its head, at the layers in `taps`: (L, D * taps)."""
    return ChatText(
        module,
        tokenizer,
        template=f"{TEMPLATE_HEAD}{{}}{TEMPLATE_TAIL}",
        max_tokens=length,
        layers=taps,
        head_tokens=template_tokens(tokenizer),
    )


class Krea2:
    """The family of Krea 2."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = QWEN_LATENTS
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        fusion = [
            widths.blocks(f"text_fusion.{kind}_blocks", f"txtfusion.{kind}_blocks") for kind in ("layerwise", "refiner")
        ]
        return native_keys(widths.blocks("transformer_blocks", "blocks"), *fusion)

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        names = ("num_layers", "num_layerwise_text_blocks", "num_refiner_text_blocks")
        return native_keys(*(config[name] for name in names))

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        mine = "txtfusion.projector.weight" in shapes or "text_fusion.projector.weight" in shapes
        return "raw" if mine else None

    def told_variant(self, source: Source, variant: str) -> str:
        """RAW or Turbo: a diffusers folder says so, a file's name may."""
        return "turbo" if source.index.get("is_distilled", "turbo" in source.path.name.lower()) else variant

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> Krea2Denoiser:
        module = load(network_class(), source, read_native, loading)
        # The norms' weights count from 1: the sum would lose their last digits in bf16. ComfyUI adds in fp32 too.
        _set_norms(module, Tensor.float)
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        qwen = load_network(newer_class("transformers", "Qwen3VLModel"), folder, "text_encoder", loading)
        tokenizer = load_tokenizer(folder, "tokenizer")
        text = tapped_text(qwen, tokenizer, VARIANTS[variant].max_text_tokens)
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return pad_and_mask([text["text"] for text in texts])

    def tiny(self, seed: int = 0) -> Tiny:
        config = {
            "in_channels": 64, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "timestep_embed_dim": 16, "text_hidden_dim": 16, "num_text_layers": 12,
            "text_num_attention_heads": 2, "text_num_key_value_heads": 2, "text_intermediate_size": 24,
            "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6),
        }  # fmt: skip
        qwen = tiny_qwen3_vl(seed + 1, width=16, tokens=512, layers=36)
        vae, network = tiny_frame_vae(seed), random_network(network_class(), config, seed)
        _set_norms(network, lambda weight: weight - 1)  # random ones lie round 1, these count from it
        return Tiny(
            vae=vae,
            denoiser=_denoiser(network, "raw"),
            encoders=Encoders(tapped_text(*qwen, 256), FrameCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": qwen},
        )


FAMILY = Krea2()
