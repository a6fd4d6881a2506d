"""Chroma: Flux's blocks without modulation of their own; a small network makes all modulations of the timestep. Text from T5-XXL.

Chroma1-HD's model card (lodestones): it is not distilled and samples with classifier-free guidance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, update_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.packing import pack, position_ids, unpack
from ..diffusion.timesteps import ResolutionShift
from ..types import Conditioning, Geometry, Shapes
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import KlCodec, device_of, load_network, load_tokenizer
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
from .common.tiny import random_network, tiny_t5, tiny_vae

if TYPE_CHECKING:
    from diffusers import ChromaTransformer2DModel
    from transformers import PreTrainedTokenizerBase

NAME = "chroma"
VARIANTS = {
    "chroma": Variant(
        objective=FlowMatching(shift=3.1582, levels=10000),  # exp(1.15), ComfyUI's
        training_shift=ResolutionShift(),
        guidance_scale=4.0,
        max_text_tokens=512,
        hides_padding=True,
        by_length=True,
    ),
}
_ATTENTION = r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
_BLOCKS = r"^(single_)?transformer_blocks\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCKS}({_ATTENTION}|{_MLP})$",
        "attention and feed-forward in the blocks, which have no modulation of their own",
    ),
    "attention": Targets(rf"{_BLOCKS}{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(rf"{_BLOCKS}({_ATTENTION}|{_MLP})$", "attention and feed-forward"),
    "all": Targets(
        rf"{_BLOCKS}({_ATTENTION}|{_MLP})$|^(x_embedder|context_embedder|proj_out)$",
        "every Linear but the modulation's",
    ),
}
LORA_NAMES = LoraNames(
    prefixes=("transformer.", "lora_transformer_", "lycoris_", ""),
    diffusers=rf"transformer_blocks\.\d+\.({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)|x_embedder|context_embedder|proj_out",
    native=r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12]|img_in|txt_in"
    r"|final_layer\.linear|distilled_guidance_layer\.(in_proj|out_proj|layers\.\d+\.(in|out)_layer)",
    sizes={r"attn[._]to_q$": (3072,)},
    aliases=names_of_flux2,
    alias_names=NAMES_OF_FLUX2,
    attention_rows=r"single_blocks\.\d+\.linear1",
)
COMFY = ComfyModel(
    model_classes=("Chroma",),
    block_classes=("DoubleStreamBlock", "SingleStreamBlock"),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "t5xxl_fp16.safetensors", "type": "chroma"},
    vae_name="ae.safetensors",
)
GUIDANCE = "distilled_guidance_layer"
"""The network of the modulations."""


def native_keys(double: int, single: int, hidden: int, mlp: int, layers: int) -> KeyMap:
    """Returns {diffusers key: original key} for `double` + `single` blocks, and `layers` in the network of the modulations."""
    pairs = [("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")]
    pairs += [(f"{GUIDANCE}.{name}",) * 2 for name in ("in_proj", "out_proj")]
    for i in range(layers):
        stem = f"{GUIDANCE}.layers.{i}"
        pairs += [(f"{stem}.in_layer", f"{stem}.linear_1"), (f"{stem}.out_layer", f"{stem}.linear_2")]
    keys = rename(pairs)
    keys |= rename([(f"{GUIDANCE}.norms.{i}.scale", f"{GUIDANCE}.norms.{i}.weight") for i in range(layers)], ("",))
    for i in range(double):
        keys |= double_keys(f"double_blocks.{i}", f"transformer_blocks.{i}", hidden, modulated=False)
    for i in range(single):
        keys |= single_keys(f"single_blocks.{i}", f"single_transformer_blocks.{i}", hidden, mlp, modulated=False)
    return keys


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """ChromaTransformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, channels = shapes["img_in.weight"]
    double, single = count_blocks(shapes, "double_blocks"), count_blocks(shapes, "single_blocks")
    head = head_width(shapes)
    wide, inputs = shapes[f"{GUIDANCE}.in_proj.weight"]
    layers = count_blocks(shapes, f"{GUIDANCE}.layers")
    config: dict[str, object] = {
        "in_channels": channels,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),  # 16, 56, 56 of 128
        "approximator_num_channels": inputs,
        "approximator_hidden_dim": wide,
        "approximator_layers": layers,
    }
    mlp = shapes["single_blocks.0.linear1.weight"][0] - 3 * hidden
    return config, native_keys(double, single, hidden, mlp, layers)


@cache
def network_class() -> "type[ChromaTransformer2DModel]":
    """Returns diffusers' class with a table of places in the modulations that is real wherever the weights are."""
    from diffusers import ChromaTransformer2DModel as Plain
    from diffusers.models.transformers.transformer_chroma import ChromaCombinedTimestepTextProjEmbeddings

    class ChromaTransformer2DModel(Plain):  # type: ignore[misc]
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **settings)
            config = self.config
            places = 3 * config.num_single_layers + 12 * config.num_layers + 2
            with torch.device("cpu"):  # the table is in no file: on the meta device nothing would ever fill it
                table = ChromaCombinedTimestepTextProjEmbeddings(config.approximator_num_channels // 4, places)
            self.add_module("time_text_embed", table)

    update_wrapper(ChromaTransformer2DModel.__init__, Plain.__init__)  # diffusers reads the settings' names off it
    return ChromaTransformer2DModel


@dataclass(kw_only=True)
class ChromaDenoiser(DiffusersDenoiser):
    """Packs latents into tokens with positions and reads them back; texts of another length are run apart."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        return by_length(self._predict, noisy_BCHW, sigma_B, conditioning)

    def _predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy_BCHW.shape[-2:]
        text_BLD = conditioning["text"].to(self.dtype)
        predicted_BLD = self.module(
            hidden_states=pack(noisy_BCHW).to(self.dtype),
            encoder_hidden_states=text_BLD,
            timestep=sigma_B.to(self.dtype),
            img_ids=position_ids(height, width).to(noisy_BCHW.device),
            txt_ids=torch.zeros(text_BLD.shape[1], 3, device=noisy_BCHW.device),
            return_dict=False,
        )[0]
        return unpack(predicted_BLD, height, width).float()

    def file_key(self, module_path: str) -> str:
        """ComfyUI knows the layers of the modulations' network by their original names only."""
        if module_path.startswith(f"{GUIDANCE}."):
            return f"diffusion_model.{module_path.replace('linear_1', 'in_layer').replace('linear_2', 'out_layer')}"
        return f"transformer.{module_path}"


class ChromaText:
    """T5's last hidden states at the prompt's own length, as ComfyUI reads them for this model."""

    def __init__(self, module: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_tokens: int) -> None:
        self.module, self.tokenizer = module, tokenizer
        self.max_tokens = min(max_tokens, tokenizer.model_max_length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """One at a time, so that nothing depends on what it is batched with."""
        return [{"text": self._read(prompt)} for prompt in prompts]

    def _read(self, prompt: str) -> Tensor:
        tokens = self.tokenizer([prompt], max_length=self.max_tokens, truncation=True, return_tensors="pt")
        return self.module(tokens["input_ids"].to(device_of(self.module))).last_hidden_state[0].float().cpu()


class Chroma:
    """The family of Chroma."""

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
        of_blocks = {key: width for key, width in widths.inputs.items() if GUIDANCE not in key}
        hidden = replace(widths, inputs=of_blocks).hidden  # the network of the modulations has a width of its own
        return native_keys(double, single, hidden, 4 * hidden, widths.blocks(f"{GUIDANCE}[._]layers"))

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        blocks = config["num_layers"], config["num_single_layers"]
        return native_keys(*blocks, hidden, 4 * hidden, config["approximator_layers"])

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        mine = f"{GUIDANCE}.in_proj.weight" in shapes
        image = "img_in.weight" in shapes or "x_embedder.weight" in shapes
        return "chroma" if mine and image and not any("nerf_" in key for key in shapes) else None

    def told_variant(self, source: Source, variant: str) -> str:
        return variant

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> ChromaDenoiser:
        return _denoiser(load(network_class(), source, read_native, loading), variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import T5EncoderModel

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        t5 = load_network(T5EncoderModel, folder, "text_encoder", loading)
        length = VARIANTS[variant].max_text_tokens
        text = ChromaText(t5, load_tokenizer(folder, "tokenizer"), max_tokens=length)
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack_unequal(texts)

    def tiny(self, seed: int = 0) -> Tiny:
        config = {
            "in_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6), "approximator_num_channels": 16,
            "approximator_hidden_dim": 24, "approximator_layers": 1,
        }  # fmt: skip
        t5 = tiny_t5(seed + 2, width=32, tokens=128)
        vae = tiny_vae(seed, 16)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(network_class(), config, seed), "chroma"),
            encoders=Encoders(ChromaText(*t5, max_tokens=512), KlCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": t5},
        )


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> ChromaDenoiser:
    objective = VARIANTS[variant].objective
    return ChromaDenoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )


FAMILY = Chroma()
