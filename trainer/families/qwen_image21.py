"""Qwen-Image 2.1: rectified flow in one stream over text and unpacked latents of 16 pixels; text from Qwen3-VL-8B.

Attention is causal, but for the image, whose tokens see each other. The VAE keeps opacity, which is full for images without.
ComfyUI's file has the names of diffusers, with the two ways into the feed-forward as one matrix.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, update_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.timesteps import ResolutionShift
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import AlphaCodec, load_network, load_tokenizer
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
    by_length,
    stack_unequal,
)
from .common.keymap import KeyMap, Part, count_blocks, split_rows
from .common.latent_spaces import QWEN_21_LATENTS
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.newer_classes import newer_class
from .common.source import Source
from .common.text.chat_text import ChatText
from .common.text.qwen_text import template_tokens
from .common.tiny import random_network, tiny_alpha_vae, tiny_qwen3_vl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "qwen_image21"
VARIANTS = {
    "qwen-image-2.1": Variant(
        objective=FlowMatching(shift=2.0, levels=10000),  # of its own law at 1024 x 1024
        training_shift=ResolutionShift(max_tokens=8192, max_shift=0.9, patch=1),  # Fizgig's sampling.py
        guidance_scale=1.0,
        max_text_tokens=1024,
        hides_padding=True,
        by_length=True,
        distilled="guidance",
        unread_references="it takes them inside of the prompt, where its language model and its network read them together, and that is not built here: it is trained from text to image alone",
    )
}
_ATTENTION = r"attn\.(to_[qkv]|to_out\.0)"
_MLP = r"img_mlp\.(gate_layer|proj|out)"
_BLOCK = r"^transformer_blocks\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCK}({_ATTENTION}|{_MLP})$", "attention and feed-forward in the blocks, which share one modulation"
    ),
    "attention": Targets(rf"{_BLOCK}{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(rf"{_BLOCK}({_ATTENTION}|{_MLP})$", "attention and feed-forward"),
    "all": Targets(r"^.", "every Linear"),
}
_ENDS = (
    "img_in", "txt_in.in_layer", "txt_in.out_layer", "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2", "modulation.1", "norm_out.linear", "proj_out",
)  # fmt: skip
_OUTSIDE = r"img_in|txt_in\.(in|out)_layer|proj_out|norm_out\.linear|modulation\.1|time_text_embed\.timestep_embedder\.linear_[12]"
LORA_NAMES = LoraNames(
    prefixes=("transformer.", "lycoris_", ""),
    diffusers=rf"transformer_blocks\.\d+\.({_ATTENTION}|{_MLP})|{_OUTSIDE}",
    native=rf"transformer_blocks\.\d+\.({_ATTENTION}|img_mlp\.(gate_up|out))|{_OUTSIDE}",
    sizes={r"attn[._]to_q$": (4096,)},
)
COMFY = ComfyModel(
    model_classes=("QwenImage21",),
    block_classes=("QwenImage21TransformerBlock",),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "qwen3vl_8b_bf16.safetensors", "type": "qwen_image"},
    vae_name="qwen_image_2.1_vae_bf16.safetensors",
)
HEAD = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
"""What the language model reads and the network does not: of diffusers' QwenImage21Pipeline."""
TEMPLATE = HEAD + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
FUSED = "transformer_blocks.0.img_mlp.gate_up.weight"


def native_keys(layers: int, width: int, norms: bool = True) -> KeyMap:
    """Returns {diffusers key: original key} for `layers` blocks with a feed-forward of `width`, with or without the norms."""
    paths = [*_ENDS]
    for i in range(layers):
        block = f"transformer_blocks.{i}"
        paths += [f"{block}.attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")] + [f"{block}.img_mlp.out"]
        paths += [f"{block}.attn.norm_{x}" for x in "qk"] if norms else []
    paths += ["txt_in.text_norm"] if norms else []
    keys = {f"{path}.weight": Part(f"{path}.weight") for path in paths}
    for i in range(layers):
        mlp = f"transformer_blocks.{i}.img_mlp"
        ways = (f"{mlp}.gate_layer", f"{mlp}.proj")
        keys |= split_rows(f"{mlp}.gate_up", ways, (width, width), (".weight",))
    return keys


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """QwenImage21Transformer2DModel's configuration, read off the original file's shapes, and its key map."""
    inner, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    config: dict[str, object] = {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0],
        "num_layers": count_blocks(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "context_in_dim": shapes["txt_in.in_layer.weight"][1],
        "mlp_ratio": shapes["transformer_blocks.0.img_mlp.out.weight"][1] // inner,
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),  # 16, 56, 56 of 128
    }
    return config, FAMILY.key_map(shapes)


@cache
def network_class() -> type[nn.Module]:
    """Returns diffusers' class with tables of positions that are real numbers wherever the weights are. Raises ConfigError where the
    installed version has none."""
    plain: Any = newer_class("diffusers", "QwenImage21Transformer2DModel")

    class QwenImage21Transformer2DModel(plain):  # type: ignore[misc]
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            with torch.device("cpu"):  # on the meta device nothing would ever fill what is not in the file
                made: Any = self
                made.pos_embed = type(made.pos_embed)(theta=10000, axes_dim=list(made.config.axes_dims_rope))
                clock = made.time_text_embed.time_proj
                made.time_text_embed.time_proj = type(clock)(timestep_dim=clock.timestep_dim)

    update_wrapper(QwenImage21Transformer2DModel.__init__, plain.__init__)  # diffusers reads the settings' names off it
    return QwenImage21Transformer2DModel


@dataclass(kw_only=True)
class QwenImage21Denoiser(DiffusersDenoiser):
    """Puts the latents, a token each, behind the text."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        return by_length(self._predict, noisy_BCHW, sigma_B, conditioning)

    def _predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        batch, _, height, width = noisy_BCHW.shape
        text_BLD = conditioning["text"]
        slots = torch.arange(text_BLD.shape[1] + height * width // 4, device=noisy_BCHW.device) >= text_BLD.shape[1]
        predicted_BLC = self.module(
            hidden_states=noisy_BCHW.flatten(2).transpose(1, 2).to(self.dtype),
            encoder_hidden_states=text_BLD.to(self.dtype),
            timestep=sigma_B.to(self.dtype),
            img_shapes=[[(1, height, width)]] * batch,
            img_mask=slots.expand(batch, -1),
            return_dict=False,
        )[0]
        image_BLC = predicted_BLC[:, -height * width :]
        return image_BLC.transpose(1, 2).unflatten(2, (height, width)).float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


def _denoiser(module: nn.Module, compute_dtype: torch.dtype | None = None) -> QwenImage21Denoiser:
    objective = VARIANTS["qwen-image-2.1"].objective
    return QwenImage21Denoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )


def _text(module: Any, tokenizer: "PreTrainedTokenizerBase", length: int) -> ChatText:
    """The last layer before the final norm, which transformers 5 applies to it."""
    module.language_model.norm.register_forward_hook(lambda norm, given, output: given[0])
    return ChatText(
        module,
        tokenizer,
        template=TEMPLATE,
        max_tokens=length,
        layers=(-1,),
        head_tokens=template_tokens(tokenizer, HEAD),
        empty=" ",
    )


class QwenImage21:
    """The family of Qwen-Image 2.1."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = QWEN_21_LATENTS
    bucket_step = 32
    """The network counts the image's tokens in squares of 2 x 2."""
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        rows = widths.rows(r"img_mlp[._](gate_layer|proj)$") or widths.rows(r"img_mlp[._]gate_up$") // 2
        return native_keys(widths.blocks("transformer_blocks"), rows, norms=False)

    def key_map(self, shapes: Shapes) -> KeyMap:
        if FUSED not in shapes:
            return {key: Part(key) for key in shapes}
        return native_keys(count_blocks(shapes, "transformer_blocks"), shapes[FUSED][0] // 2)

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        width = config["num_attention_heads"] * config["attention_head_dim"] * config["mlp_ratio"]
        return native_keys(config["num_layers"], width)

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        mine = "txt_in.text_norm.weight" in shapes and "transformer_blocks.0.img_mlp.out.weight" in shapes
        return "qwen-image-2.1" if mine else None

    def told_variant(self, source: Source, variant: str) -> str:
        return variant

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> QwenImage21Denoiser:
        return _denoiser(load(network_class(), source, read_native, loading), loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", self._tokenizer(source), "vae")

    def _tokenizer(self, source: Source) -> str:
        """diffusers' folders of it have the tokenizer in the processor's."""
        return "processor" if (source.encoder_folder() / "processor").is_dir() else "tokenizer"

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        qwen = load_network(newer_class("transformers", "Qwen3VLModel"), folder, "text_encoder", loading)
        tokenizer = load_tokenizer(folder, self._tokenizer(source))
        return Encoders(_text(qwen, tokenizer, VARIANTS[variant].max_text_tokens), codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_unequal(texts)

    def tiny(self, seed: int = 0) -> Tiny:
        config = {
            "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "context_in_dim": 32, "mlp_ratio": 2,
            "axes_dims_rope": (4, 6, 6),
        }  # fmt: skip
        qwen = tiny_qwen3_vl(seed + 1, width=32, tokens=512, layers=2)
        vae = tiny_alpha_vae(seed)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(network_class(), config, seed)),
            encoders=Encoders(_text(*qwen, 128), AlphaCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": qwen},
        )


FAMILY = QwenImage21()
