"""FLUX.2 dev and Klein: rectified flow, joint attention, one modulation for all blocks (black-forest-labs/flux2).

Latents are 2 x 2 patches of the VAE's, 16 pixels each, a token apiece. dev takes a guidance value and reads Mistral Small 3, Klein
takes none and reads Qwen3. Klein and its base have tensors of the same names and shapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..diffusion.timesteps import ResolutionShift
from ..types import Conditioning, Geometry, Shapes, references_in
from .common.encoder_files.parts import FolderParts, codec_of
from .common.encoders import PatchedCodec, load_network, load_tokenizer
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
    stack,
)
from .common.keymap import KeyMap, count_blocks, rename
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.native.flux_keys import double_keys, head_width, names_of_flux1, norm_keys
from .common.source import Source
from .common.text.flux2_text import dev_text, klein_text
from .common.tiny import random_network, tiny_patched_vae, tiny_qwen3

NAME = "flux2"
MOST_REFERENCES = 4
_KLEIN = Variant(
    objective=FlowMatching(shift=7.538, levels=10000),  # exp(2.02), ComfyUI's
    training_shift=ResolutionShift(patch=1),  # a token is a pixel of the latents
    guidance_scale=4.0,
    max_text_tokens=512,
    references=MOST_REFERENCES,
)
VARIANTS = {
    "klein-base": _KLEIN,
    "klein": replace(_KLEIN, guidance_scale=1.0, distilled="steps"),
    "dev": replace(_KLEIN, guidance_scale=1.0, guidance_embedding=True, distilled="guidance"),
}
_BLOCKS = r"(^|\.)(single_)?transformer_blocks\.\d+\."
_ATTENTION = r"attn\.(to_[qkv]|to_out(\.0)?|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)"
_MLP = r"ff(_context)?\.linear_(in|out)"
TARGETS = {
    "default": Targets(
        rf"{_BLOCKS}({_ATTENTION}|{_MLP})$",
        "attention and feed-forward in the blocks, which have no modulation of their own",
    ),
    "attention": Targets(
        rf"{_BLOCKS}{_ATTENTION}$", "attention; in the single blocks it is one matrix with feed-forward"
    ),
    "attention+mlp": Targets(rf"{_BLOCKS}({_ATTENTION}|{_MLP})$", "attention and feed-forward"),
    "all": Targets(r"^(?!norm_out\.)", "every Linear that keeps its rows in the host"),
}


LORA_NAMES = LoraNames(
    prefixes=("transformer.", "lora_transformer_", "lycoris_", ""),
    diffusers=rf"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|{_MLP})"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)|x_embedder|context_embedder|proj_out|norm_out\.linear",
    native=r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12]|img_in|txt_in"
    r"|final_layer\.(linear|adaLN_modulation\.1)|(time|guidance)_in\.(in|out)_layer"
    r"|(double_stream_modulation_(img|txt)|single_stream_modulation)\.lin",
    aliases=names_of_flux1,
    alias_names=r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
    r"|time_text_embed\.(timestep|guidance)_embedder\.linear_[12]",
    sizes={r"single.*(linear1|to[._]qkv[._]mlp[._]proj)$|attn[._]to[._]q$": (3072, 4096, 6144)},
    attention_rows=r"single_blocks\.\d+\.linear1",
)
COMFY = ComfyModel(
    model_classes=("Flux2",),
    block_classes=("DoubleStreamBlock", "SingleStreamBlock"),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "qwen_3_4b.safetensors", "type": "flux2"},
    vae_name="flux2-vae.safetensors",
)
REFERENCE_STEP = 10
"""Distance of reference images along the first axis of positions, from the image itself and from each other."""
_SAME = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")


def native_keys(double: int, single: int, hidden: int, *, guidance: bool) -> KeyMap:
    """Returns {diffusers key: original key} for `double` + `single` blocks of width `hidden`."""
    pairs = [("img_in", "x_embedder"), ("txt_in", "context_embedder"), ("final_layer.linear", "proj_out")]
    pairs += [(f"{name}.lin", f"{name}.linear") for name in _SAME]
    for native, diffusers in [
        ("time_in", "timestep_embedder"),
        *([("guidance_in", "guidance_embedder")] if guidance else []),
    ]:
        stem = f"time_guidance_embed.{diffusers}"
        pairs += [(f"{native}.in_layer", f"{stem}.linear_1"), (f"{native}.out_layer", f"{stem}.linear_2")]
    keys = rename(pairs, (".weight",))
    keys |= rename([("final_layer.adaLN_modulation.1", "norm_out.linear")], (".weight",), swap_halves=True)
    for i in range(double):
        names = (f"double_blocks.{i}", f"transformer_blocks.{i}", hidden)
        keys |= double_keys(*names, modulated=False, feed_forward=("linear_in", "linear_out"), suffixes=(".weight",))
    for i in range(single):
        keys |= _single_keys(f"single_blocks.{i}", f"single_transformer_blocks.{i}")
    return keys


def _single_keys(native: str, block: str) -> KeyMap:
    pairs = [(f"{native}.linear1", f"{block}.attn.to_qkv_mlp_proj"), (f"{native}.linear2", f"{block}.attn.to_out")]
    return rename(pairs, (".weight",)) | norm_keys(f"{native}.norm", f"{block}.attn", "norm_q", "norm_k")


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """Flux2Transformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, channels = shapes["img_in.weight"]
    double, single = count_blocks(shapes, "double_blocks"), count_blocks(shapes, "single_blocks")
    head = head_width(shapes)
    guidance = "guidance_in.in_layer.weight" in shapes
    config: dict[str, object] = {
        "in_channels": channels,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / hidden,
        "guidance_embeds": guidance,
        "axes_dims_rope": (head // 4,) * 4,  # 32 of 128
    }
    return config, native_keys(double, single, hidden, guidance=guidance)


@dataclass(kw_only=True)
class Flux2Denoiser(DiffusersDenoiser):
    """Hands latents and references over as tokens with positions, and reads the image's tokens back."""

    @property
    def guided(self) -> bool:
        """Whether the network takes a guidance value."""
        return bool(self.module.config.guidance_embeds)  # type: ignore[union-attr]

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        images = [noisy_BCHW, *references_in(conditioning)]
        tokens_BLD = torch.cat([image.flatten(2).transpose(1, 2) for image in images], dim=1)
        text_BLD = conditioning["text"].to(self.dtype)
        predicted_BLD = self.module(
            hidden_states=tokens_BLD.to(self.dtype),
            encoder_hidden_states=text_BLD,
            timestep=sigma_B.to(self.dtype),
            guidance=conditioning["guidance"].to(self.dtype) if self.guided else None,
            img_ids=torch.cat([_places(image, number) for number, image in enumerate(images)]),
            txt_ids=_last_axis(text_BLD),
            return_dict=False,
        )[0]
        rows, columns = noisy_BCHW.shape[-2:]
        return predicted_BLD[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns)).float()

    def file_key(self, module_path: str) -> str:
        """diffusers' name where ComfyUI knows it, else the original file's."""
        if LORA_NAMES.matches_diffusers(f"transformer.{module_path}"):
            return f"transformer.{module_path}"
        keys = native_keys(0, 0, 0, guidance=True)
        return f"diffusion_model.{keys[f'{module_path}.weight'].native.removesuffix('.weight')}"


def _places(latents_BCHW: Tensor, number: int) -> Tensor:
    """Positions (L, 4) of an image's tokens: which image, row, column, 0."""
    rows, columns = (torch.arange(size, device=latents_BCHW.device) for size in latents_BCHW.shape[-2:])
    which, zero = torch.tensor([number * REFERENCE_STEP]).to(rows), torch.zeros(1).to(rows)
    return torch.cartesian_prod(which, rows, columns, zero)


def _last_axis(text_BLD: Tensor) -> Tensor:
    """Positions (L, 4) of a text's tokens, counted along the fourth axis."""
    length = text_BLD.shape[1]
    return torch.nn.functional.pad(torch.arange(length, device=text_BLD.device)[:, None], (3, 0))


class Flux2:
    """The family of FLUX.2."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=128, scale=1.0)
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        double = widths.blocks("transformer_blocks", "double_blocks")
        single = widths.blocks("single_transformer_blocks", "single_blocks")
        return native_keys(double, single, widths.hidden, guidance=True)

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        hidden = config["num_attention_heads"] * config["attention_head_dim"]
        guidance = bool(config.get("guidance_embeds", True))
        return native_keys(config["num_layers"], config["num_single_layers"], hidden, guidance=guidance)

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        if not any(f"double_stream_modulation_img.{name}.weight" in shapes for name in ("lin", "linear")):
            return None
        return "dev" if any("guidance_in." in key or "guidance_embedder" in key for key in shapes) else "klein-base"

    def told_variant(self, source: Source, variant: str) -> str:
        """Klein or its base: a diffusers folder says so, a file's name may."""
        if variant == "dev":
            return variant
        name = source.path.name.lower()
        distilled = source.index.get("is_distilled", "klein" in name and "base" not in name)
        return "klein" if distilled else "klein-base"

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> Flux2Denoiser:
        from diffusers import Flux2Transformer2DModel

        return _denoiser(load(Flux2Transformer2DModel, source, read_native, loading), variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        import transformers

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        tokenizer = load_tokenizer(folder, "tokenizer")
        length = VARIANTS[variant].max_text_tokens
        if variant == "dev":
            mistral = load_network(transformers.Mistral3ForConditionalGeneration, folder, "text_encoder", loading)
            text = dev_text(mistral, tokenizer, length)
        else:
            text = klein_text(load_network(transformers.Qwen3Model, folder, "text_encoder", loading), tokenizer, length)
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return stack(texts) | {"guidance": torch.full((len(texts),), guidance)}

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import Flux2Transformer2DModel

        config: dict[str, Any] = {
            "in_channels": 128, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 48, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False,
        }  # fmt: skip
        qwen = tiny_qwen3(seed + 1, width=16, tokens=128, layers=4)
        vae = tiny_patched_vae(seed)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(Flux2Transformer2DModel, config, seed), "klein-base"),
            encoders=Encoders(klein_text(*qwen, 128), PatchedCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": qwen},
        )


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> Flux2Denoiser:
    objective = VARIANTS[variant].objective
    return Flux2Denoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )


FAMILY = Flux2()
