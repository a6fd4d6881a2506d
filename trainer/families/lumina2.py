"""Lumina-Image 2.0: rectified flow, one stream, grouped-query attention; text from Gemma-2 (arXiv 2503.21758).

The network's clock runs towards the data: it is fed 1 - sigma and answers x0 - noise, which `predict` turns round.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.timesteps import ResolutionShift
from ..errors import ModelFileError
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import KlCodec, load_network, load_tokenizer
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
    pad_and_mask,
)
from .common.keymap import KeyMap, count_blocks, rename, split_rows
from .common.lora_layouts import FUSED_DIT, Widths
from .common.lora_names import LoraNames
from .common.lumina2_network import fuse, network_class
from .common.modules import load
from .common.source import Source
from .common.text.lumina2_text import Lumina2Text, system_prompt, worded
from .common.tiny import random_network, tiny_gemma, tiny_vae

if TYPE_CHECKING:
    pass

NAME = "lumina2"
VARIANTS = {
    "lumina2": Variant(
        objective=FlowMatching(shift=6.0),
        training_shift=ResolutionShift(),
        guidance_scale=4.0,
        max_text_tokens=256,
        hides_padding=True,
        text_options=("system_prompt",),
    ),
}
_BLOCK = r"^(layers|noise_refiner|context_refiner)\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCK}(attn\.(to_qkv|to_out\.0)|feed_forward\.linear_[123]|norm1\.linear)$",
        "attention, feed-forward and modulation in the blocks",
    ),
    "attention": Targets(rf"{_BLOCK}attn\.(to_qkv|to_out\.0)$", "all projections of attention, q k v as one"),
    "attention+mlp": Targets(
        rf"{_BLOCK}(attn\.(to_qkv|to_out\.0)|feed_forward\.linear_[123])$", "attention and feed-forward"
    ),
    "all": Targets(r".", "every Linear"),
}
UNUSED = ("norm_final.weight",)
"""Tensors of the original file that nothing reads."""


_Z_IMAGE = [(r"\.attention\.out\.", ".attention.to_out.0."), (r"^(x_embedder|final_layer)\.", r"all_\1.2-1.")]


def _names_of_z_image(keymap: KeyMap) -> KeyMap:
    """Z-Image's names of modules, which ComfyUI takes for Lumina 2 too. Those of q, k and v alone would lead to other rows."""
    aliases: KeyMap = {}
    for part in keymap.values():
        if part.rows is None and part.native.endswith(".weight") and ".qkv." not in part.native:
            alias = part.native
            for old, new in _Z_IMAGE:
                alias = re.sub(old, new, alias)
            aliases[alias] = part
    return aliases


LORA_NAMES = LoraNames(
    native=r"((context|noise)_refiner|layers)\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123]|adaLN_modulation\.1)"
    r"|cap_embedder\.1|x_embedder|t_embedder\.mlp\.[02]|final_layer\.(linear|adaLN_modulation\.1)",
    sizes={r"attention[._]qkv$": (2304,)},
    aliases=_names_of_z_image,
    alias_names=r"((context|noise)_refiner|layers)\.\d+\.(attention\.to_out\.0|feed_forward\.w[123])|cap_embedder\.1|t_embedder\.mlp\.[02]"
    r"|all_x_embedder\.2-1|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)",
    alias_prefixes=("transformer.", "lycoris_", "diffusion_model.", ""),
)


COMFY = ComfyModel(
    model_classes=("Lumina2",),
    block_classes=("JointTransformerBlock",),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "gemma_2_2b_fp16.safetensors", "type": "lumina2"},
    vae_name="ae.safetensors",
    wording=lambda prompt, reading: worded(prompt, system_prompt(reading)),
)


def native_keys(layers: int, refiners: int) -> KeyMap:
    """Returns {diffusers key, q k v fused: original key} for `layers` joint blocks and `refiners` blocks of each refiner."""
    embedder = "time_caption_embed.timestep_embedder"
    keys = rename(
        [
            ("x_embedder", "x_embedder"),
            ("t_embedder.mlp.0", f"{embedder}.linear_1"),
            ("t_embedder.mlp.2", f"{embedder}.linear_2"),
            ("cap_embedder.1", "time_caption_embed.caption_embedder.1"),
            ("final_layer.adaLN_modulation.1", "norm_out.linear_1"),
            ("final_layer.linear", "norm_out.linear_2"),
        ]
    )
    keys |= rename([("cap_embedder.0", "time_caption_embed.caption_embedder.0")], (".weight",))
    for stem, count in (("layers", layers), ("noise_refiner", refiners), ("context_refiner", refiners)):
        for i in range(count):
            keys |= _block_keys(f"{stem}.{i}", modulated=stem != "context_refiner")
    return keys


def _block_keys(block: str, *, modulated: bool) -> KeyMap:
    pairs = [
        ("attention.qkv", "attn.to_qkv"),
        ("attention.out", "attn.to_out.0"),
        ("attention.q_norm", "attn.norm_q"),
        ("attention.k_norm", "attn.norm_k"),
        ("attention_norm1", "norm1.norm" if modulated else "norm1"),
        ("attention_norm2", "norm2"),
        ("ffn_norm1", "ffn_norm1"),
        ("ffn_norm2", "ffn_norm2"),
        *[(f"feed_forward.w{n}", f"feed_forward.linear_{n}") for n in (1, 2, 3)],
    ]
    keys = rename([(f"{block}.{native}", f"{block}.{diffusers}") for native, diffusers in pairs], (".weight",))
    if modulated:
        keys |= rename([(f"{block}.adaLN_modulation.1", f"{block}.norm1.linear")])
    return keys


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """Lumina2Transformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, patch_width = shapes["x_embedder.weight"]
    layers, refiners = count_blocks(shapes, "layers"), count_blocks(shapes, "noise_refiner")
    attention = "noise_refiner.0.attention"
    head = shapes[f"{attention}.q_norm.weight"][0]
    heads = hidden // head
    feed = shapes["noise_refiner.0.feed_forward.w1.weight"][0]
    usual = -(-4 * hidden // 256) * 256
    config: dict[str, object] = {
        "in_channels": patch_width // 4,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_refiner_layers": refiners,
        "num_attention_heads": heads,
        "num_kv_heads": (shapes[f"{attention}.qkv.weight"][0] // head - heads) // 2,
        "multiple_of": 256 if feed == usual else feed,
        "ffn_dim_multiplier": None if feed == usual else feed / (4 * hidden),
        "axes_dim_rope": (head // 3,) * 3,
        "axes_lens": (300, 512, 512),
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
    }
    return config, native_keys(layers, refiners)


@dataclass(kw_only=True)
class Lumina2Denoiser(DiffusersDenoiser):
    """Turns the network's clock and answer round; files carry the original file's names."""

    native: Mapping[str, str] = field(default_factory=dict)
    """{module path: name in the original file}."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        output = self.module(
            hidden_states=noisy_BCHW.to(self.dtype),
            timestep=1 - sigma_B,
            encoder_hidden_states=conditioning["text"].to(self.dtype),
            encoder_attention_mask=conditioning["text_mask"],
            return_dict=False,
        )
        return -output[0].float()

    def file_key(self, module_path: str) -> str:
        return f"diffusion_model.{self.native[module_path]}"


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> Lumina2Denoiser:
    config: Any = module.config
    keys = native_keys(config.num_layers, config.num_refiner_layers)
    return Lumina2Denoiser(
        family=NAME,
        module=module,
        objective=VARIANTS[variant].objective,
        target_presets=TARGETS,
        compute_dtype=compute_dtype,
        native={
            key.removesuffix(".weight"): part.native.removesuffix(".weight")
            for key, part in keys.items()
            if key.endswith(".weight")
        },
    )


class Lumina2:
    """The family of Lumina-Image 2.0."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=16, scale=0.3611, shift=0.1159)
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = FUSED_DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        """Returns the weights with q, k and v apart, as diffusers has them."""
        refiners = widths.blocks("noise_refiner", "context_refiner")
        keys = native_keys(widths.blocks("layers"), refiners)
        hidden = widths.width(r"to[._][qkv]$|attention[._]qkv$")  # the modulation's input is narrower
        key_rows = widths.rows(r"to[._][kv]$") or (widths.rows(r"attention[._]qkv$") - hidden) // 2
        rows = (hidden, key_rows, key_rows)
        for fused in [key for key in keys if "to_qkv" in key]:
            native = keys.pop(fused).native.removesuffix(".weight")
            apart = [fused.removesuffix(".weight").replace("to_qkv", f"to_{x}") for x in "qkv"]
            keys |= split_rows(native, apart, rows, (".weight",))
        return keys

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        return native_keys(config["num_layers"], config["num_refiner_layers"])

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        native = "cap_embedder.1.weight" in shapes and "noise_refiner.0.adaLN_modulation.1.weight" in shapes
        caption = "time_caption_embed.caption_embedder.1.weight"
        diffusers = caption in shapes and "noise_refiner.0.norm1.linear.weight" in shapes
        other = "clip_text_pooled_proj.0.weight" in shapes or "cap_pad_token" in shapes  # NewBie, Z-Image
        return "lumina2" if (native or diffusers) and not other else None

    def told_variant(self, source: Source, variant: str) -> str:
        return variant

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> Lumina2Denoiser:
        if source.quanto_map is not None:
            raise ModelFileError(
                f"{source.path} is quantised with q, k and v apart, and Lumina2 is trained with the three as one: give the original base, with model.quantize"
            )
        module = load(network_class(), source, read_native, loading, adapt=fuse, unused=UNUSED)
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import Gemma2Model

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        module = load_network(Gemma2Model, folder, "text_encoder", loading)
        tokenizer = load_tokenizer(folder, "tokenizer")
        length = VARIANTS[variant].max_text_tokens
        text = Lumina2Text(module, tokenizer, max_tokens=length, system=system_prompt(reading))
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return pad_and_mask([text["text"] for text in texts])

    def tiny(self, seed: int = 0) -> Tiny:
        config = {
            "in_channels": 16, "hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 4,
            "num_kv_heads": 2, "multiple_of": 32, "axes_dim_rope": (4, 4, 4), "axes_lens": (300, 512, 512), "cap_feat_dim": 32,
        }  # fmt: skip
        gemma = tiny_gemma(seed + 1, width=32, tokens=256)
        vae = tiny_vae(seed, 16)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(network_class(), config, seed), "lumina2"),
            encoders=Encoders(Lumina2Text(*gemma, max_tokens=256), KlCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": gemma},
        )


FAMILY = Lumina2()
