"""Qwen-Image and Qwen-Image-Edit: rectified flow on packed 2x2 latents, text from Qwen2.5-VL (arXiv 2508.02324).

Original files have diffusers' own names, so nothing is renamed. Latents are normalised per channel; the VAE is a video
one and takes an image as a film of one frame. An edit model takes reference images twice: their clean latents follow
the noisy ones, and the language model sees them before the prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, update_wrapper
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.packing import pack, unpack
from ..diffusion.timesteps import ResolutionShift
from ..errors import ModelFileError
from ..types import Conditioning, Geometry, Shapes, references_in
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import FrameCodec, load_network, load_tokenizer
from .common.family import (
    DEFAULT_PROMPT_ENCODING,
    ComfyModel,
    DiffusersDenoiser,
    EditPrompt,
    Encoders,
    Loading,
    PromptEncoding,
    Text,
    Tiny,
    Variant,
    pad_and_mask,
)
from .common.keymap import KeyMap, Part, count_blocks
from .common.latent_spaces import QWEN_LATENTS
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.source import Source
from .common.text.qwen_text import EDIT_HEAD, TEMPLATE_TAIL, QwenText, template_tokens
from .common.tiny import random_network, tiny_frame_vae, tiny_qwen

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel

NAME = "qwen_image"
_PLAIN = Variant(
    objective=FlowMatching(shift=3.1582, levels=10000),  # exp(1.15), ComfyUI's
    training_shift=ResolutionShift(max_tokens=8192, max_shift=0.9),
    guidance_scale=4.0,
    max_text_tokens=1024,
    hides_padding=True,
)
VARIANTS = {
    "qwen-image": _PLAIN,
    "qwen-image-edit": replace(_PLAIN, references=1, text_pixels=1024),
    "qwen-image-edit-plus": replace(_PLAIN, references=3, text_pixels=384),
}
"""The edit variants differ in how many references they see (2509 and later: three, as ComfyUI's node for them takes), in how
large the language model sees one, and in how it is announced."""
ANNOUNCE = {"qwen-image-edit-plus": "Picture {}: "}
PIPELINES = {"QwenImageEditPipeline": "qwen-image-edit", "QwenImageEditPlusPipeline": "qwen-image-edit-plus"}
CLEAN_CLOCK = "__index_timestep_zero__"
"""An empty tensor in ComfyUI's files of edit models whose reference tokens have the timestep of sigma = 0 (2511)."""
_ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
_BLOCK = r"^transformer_blocks\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCK}({_ATTENTION}|(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1))$",
        "attention, feed-forward and modulation in the blocks",
    ),
    "attention": Targets(rf"{_BLOCK}{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(rf"{_BLOCK}({_ATTENTION}|(img|txt)_mlp\.net\.(0\.proj|2))$", "attention and feed-forward"),
    "all": Targets(r"^.", "every Linear"),
}
_MODULES = (
    rf"transformer_blocks\.\d+\.({_ATTENTION}|(img|txt)_(mlp\.net\.(0\.proj|2)|mod\.1))|img_in|txt_in|proj_out|norm_out\.linear"
    r"|time_text_embed\.timestep_embedder\.linear_[12]"
)
LORA_NAMES = LoraNames(
    prefixes=("transformer.", "lycoris_", ""),
    diffusers=_MODULES,
    native=_MODULES,
    sizes={r"attn[._]to_q$": (3072,), r"add[._]q[._]proj$": (3072,)},
)


COMFY = ComfyModel(
    model_classes=("QwenImage",),
    block_classes=("QwenImageTransformerBlock",),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image"},
    vae_name="qwen_image_vae.safetensors",
    edit_prompts={
        "qwen-image-edit": EditPrompt(
            tokenizer="QwenImageTokenizer", node="TextEncodeQwenImageEdit", image_inputs=("image",)
        ),
        "qwen-image-edit-plus": EditPrompt(
            tokenizer="QwenImageTokenizer",
            node="TextEncodeQwenImageEditPlus",
            image_inputs=("image1", "image2", "image3"),
            announcement=ANNOUNCE["qwen-image-edit-plus"],
            image_token="<|vision_start|><|image_pad|><|vision_end|>",
            template=f"{EDIT_HEAD}{{}}{TEMPLATE_TAIL}",
        ),
    },
)


def targets_of(layers: int) -> dict[str, Targets]:
    """The presets for a network of `layers` blocks, less what cannot learn: the last block's text output goes nowhere."""
    idle = rf"(?!^transformer_blocks\.{layers - 1}\.(attn\.(add_q_proj|to_add_out)$|txt_mlp\.))"
    return {name: Targets(f"{idle}{target.pattern}", target.description) for name, target in TARGETS.items()}


LAYERED = "time_text_embed.addition_t_embedding.weight"


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """QwenImageTransformer2DModel's configuration, read off the file's shapes, and the map of every name to itself."""
    inner, channels = shapes["img_in.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    config: dict[str, object] = {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // 4,
        "num_layers": count_blocks(shapes, "transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),  # 16, 56, 56 of 128
    }
    if CLEAN_CLOCK in shapes:
        if "zero_cond_t" not in signature(network_class().__init__).parameters:
            raise ModelFileError(f"this file's references have a clock of their own ({CLEAN_CLOCK}): update diffusers")
        config["zero_cond_t"] = True
    return config, FAMILY.key_map(shapes)


@cache
def network_class() -> "type[QwenImageTransformer2DModel]":
    """Returns diffusers' class with tables of rotary positions that are real numbers wherever the weights are; made on first use."""
    from diffusers import QwenImageTransformer2DModel as Plain
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

    class Rope(QwenEmbedRope):  # type: ignore[misc]
        """Texts begin after the image itself, as in ComfyUI; diffusers lets a larger reference push them further."""

        def forward(
            self, video_fhw: Sequence[Sequence[tuple[int, int, int]]], *args: object, **kwargs: object
        ) -> tuple[Tensor, Tensor]:
            images, _ = super().forward(video_fhw, *args, **kwargs)
            _, texts = super().forward([sample[:1] for sample in video_fhw], *args, **kwargs)
            return images, texts

    class QwenImageTransformer2DModel(Plain):  # type: ignore[misc]
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            config = self.config
            with torch.device("cpu"):  # the tables are not buffers: on the meta device nothing would ever fill them
                rope = Rope(10000, list(config.axes_dims_rope), scale_rope=True)
            self.add_module("pos_embed", rope)

    update_wrapper(QwenImageTransformer2DModel.__init__, Plain.__init__)  # diffusers reads the settings' names off it
    return QwenImageTransformer2DModel


@dataclass(kw_only=True)
class QwenImageDenoiser(DiffusersDenoiser):
    """Packs latents and references into tokens and reads the image's tokens back."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        tokens_BLD, images = pack(noisy_BCHW), [(1, height // 2, width // 2)]
        count = tokens_BLD.shape[1]
        for reference_BCHW in references_in(conditioning):
            tokens_BLD = torch.cat([tokens_BLD, pack(reference_BCHW)], dim=1)
            images.append((1, reference_BCHW.shape[-2] // 2, reference_BCHW.shape[-1] // 2))
        predicted_BLD = self.module(
            hidden_states=tokens_BLD.to(self.dtype),
            encoder_hidden_states=conditioning["text"].to(self.dtype),
            encoder_hidden_states_mask=conditioning["text_mask"],
            timestep=sigma_B.to(self.dtype),
            img_shapes=[images] * len(noisy_BCHW),
            return_dict=False,
        )[0]
        return unpack(predicted_BLD[:, :count], height, width).float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> QwenImageDenoiser:
    config: Any = module.config
    return QwenImageDenoiser(
        family=NAME,
        module=module,
        objective=VARIANTS[variant].objective,
        target_presets=targets_of(config.num_layers),
        compute_dtype=compute_dtype,
    )


class QwenImage:
    """The family of Qwen-Image and its edit models."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = QWEN_LATENTS
    bucket_step = 32
    """An even number of patches: of an odd one, diffusers and ComfyUI take different patches for the middle."""
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        depth = widths.blocks("transformer_blocks")
        ends = ["img_in", "txt_in", "proj_out", "norm_out.linear"]
        ends += [f"time_text_embed.timestep_embedder.linear_{n}" for n in (1, 2)]
        inner = [f"attn.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")]
        inner += [f"attn.add_{x}_proj" for x in "qkv"]
        inner += [f"{stream}_{x}" for stream in ("img", "txt") for x in ("mlp.net.0.proj", "mlp.net.2", "mod.1")]
        paths = [*ends, *(f"transformer_blocks.{i}.{name}" for i in range(depth) for name in inner)]
        return {f"{path}.weight": Part(f"{path}.weight") for path in paths}

    def key_map(self, shapes: Shapes) -> KeyMap:
        return {key: Part(key) for key in shapes if key != CLEAN_CLOCK}

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return targets_of(count_blocks(paths, "transformer_blocks"))

    def detect(self, shapes: Shapes) -> str | None:
        mine = "txt_norm.weight" in shapes and "transformer_blocks.0.img_mod.1.weight" in shapes
        if not mine or LAYERED in shapes:
            return None
        return "qwen-image-edit-plus" if CLEAN_CLOCK in shapes else "qwen-image"

    def told_variant(self, source: Source, variant: str) -> str:
        """The edit models' weights have the same names and shapes; a diffusers folder says whose pipeline they are."""
        return PIPELINES.get(source.pipeline, variant)

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> QwenImageDenoiser:
        module = load(network_class(), source, read_native, loading, unused=(CLEAN_CLOCK,))
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import Qwen2_5_VLForConditionalGeneration

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        module = load_network(Qwen2_5_VLForConditionalGeneration, folder, "text_encoder", loading)
        tokenizer = load_tokenizer(folder, "tokenizer")
        text = QwenText(
            module,
            tokenizer,
            max_tokens=VARIANTS[variant].max_text_tokens,
            head_tokens=template_tokens(tokenizer),
            announce=ANNOUNCE.get(variant, ""),
        )
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return pad_and_mask([text["text"] for text in texts])

    def tiny(self, seed: int = 0) -> Tiny:
        config = {
            "in_channels": 64, "out_channels": 16, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
            "joint_attention_dim": 32, "axes_dims_rope": (4, 14, 14),
        }  # fmt: skip
        qwen = tiny_qwen(seed + 1, width=32, tokens=512)
        text = QwenText(*qwen, max_tokens=128, head_tokens=template_tokens(qwen[1]))
        vae = tiny_frame_vae(seed)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(network_class(), config, seed), "qwen-image"),
            encoders=Encoders(text, FrameCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": qwen},
        )


FAMILY = QwenImage()
