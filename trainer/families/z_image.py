"""Z-Image and Z-Image-Turbo: rectified flow, one stream over image and text; text from Qwen3-4B (arXiv 2511.22699).

The network's clock runs towards the data: it is fed 1 - sigma and answers x0 - noise, which `predict` turns round. Base and Turbo
have tensors of the same names and shapes; only the name of the file or folder says which of them it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Targets
from ..diffusion.objectives import FlowMatching
from ..known_models.row import tell
from ..known_models.rows import Z_IMAGE_ROWS
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
from .common.lora_layouts import DIT, Widths
from .common.lora_names import LoraNames
from .common.modules import load
from .common.source import Source
from .common.text.chat_text import ChatText
from .common.tiny import random_network, tiny_qwen3, tiny_vae

NAME = "z_image"
_BASE = Variant(
    objective=FlowMatching(shift=3.0), training_shift=3.0, guidance_scale=4.0, max_text_tokens=512, hides_padding=True
)
VARIANTS = {
    "z-image": _BASE,
    "z-image-turbo": replace(_BASE, guidance_scale=1.0, distilled="steps"),
}
"""The shift is ComfyUI's, for both; the base samples with a guidance scale of 3 to 5 and Turbo without (the authors' model cards)."""
_ATTENTION = r"attention\.(to_[qkv]|to_out\.0)"
_MLP = r"feed_forward\.w[123]"
_BLOCK = r"^layers\.\d+\."
TARGETS = {
    "default": Targets(
        rf"{_BLOCK}({_ATTENTION}|{_MLP}|adaLN_modulation\.0)$", "attention, feed-forward and modulation in the blocks"
    ),
    "attention": Targets(rf"{_BLOCK}{_ATTENTION}$", "all projections of attention"),
    "attention+mlp": Targets(rf"{_BLOCK}({_ATTENTION}|{_MLP})$", "attention and feed-forward"),
    "all": Targets(r".", "every Linear"),
}
_ENDS = r"cap_embedder\.1|t_embedder\.mlp\.[02]|((context|noise)_refiner|layers)\.\d+\.(feed_forward\.w[123]|adaLN_modulation\.0)"
LORA_NAMES = LoraNames(
    prefixes=("transformer.", "diffusion_model.", "lycoris_", ""),
    diffusers=rf"{_ENDS}|((context|noise)_refiner|layers)\.\d+\.{_ATTENTION}|all_x_embedder\.2-1"
    r"|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)",
    native=rf"{_ENDS}|((context|noise)_refiner|layers)\.\d+\.attention\.(qkv|out)|x_embedder"
    r"|final_layer\.(linear|adaLN_modulation\.1)",
    sizes={r"attention[._](qkv|to[._][qkv])$": (3840,)},
)
COMFY = ComfyModel(
    model_classes=("Lumina2",),
    told_by={"z_image_modulation": True},
    block_classes=("JointTransformerBlock",),
    clip_loader="CLIPLoader",
    clip_inputs={"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"},
    vae_name="ae.safetensors",
)
PATCH = "2-1"
"""How diffusers names the embedder and the last layer for patches of 2 x 2 pixels and one frame."""
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
OTHERS = frozenset({"siglip_embedder.1.weight", "dec_net.cond_embed.weight"})
"""Tensors of relatives that this family does not train: the model that also sees images, and the one without a VAE."""


def native_keys(layers: int, refiners: int, hidden: int) -> KeyMap:
    """Returns {diffusers key: original key} for `layers` joint blocks and `refiners` blocks of each refiner, of width `hidden`."""
    pairs = [("x_embedder", f"all_x_embedder.{PATCH}"), ("cap_embedder.1", "cap_embedder.1")]
    pairs += [(f"t_embedder.mlp.{n}", f"t_embedder.mlp.{n}") for n in (0, 2)]
    pairs += [(f"final_layer.{name}", f"all_final_layer.{PATCH}.{name}") for name in ("linear", "adaLN_modulation.1")]
    keys = rename(pairs) | rename([("cap_embedder.0", "cap_embedder.0")], (".weight",))
    keys |= rename([(name, name) for name in ("x_pad_token", "cap_pad_token")], ("",))
    for stem, count in (("layers", layers), ("noise_refiner", refiners), ("context_refiner", refiners)):
        for i in range(count):
            keys |= _block_keys(f"{stem}.{i}", hidden, modulated=stem != "context_refiner")
    return keys


def _block_keys(block: str, hidden: int, *, modulated: bool) -> KeyMap:
    attention = f"{block}.attention"
    same = ["attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"]
    same += [f"feed_forward.w{n}" for n in (1, 2, 3)]
    pairs = [(f"{block}.{name}", f"{block}.{name}") for name in same]
    pairs += [(f"{attention}.{x}_norm", f"{attention}.norm_{x}") for x in "qk"]
    keys = rename([*pairs, (f"{attention}.out", f"{attention}.to_out.0")], (".weight",))
    keys |= split_rows(f"{attention}.qkv", [f"{attention}.to_{x}" for x in "qkv"], (hidden,) * 3, (".weight",))
    if modulated:
        keys |= rename([(f"{block}.adaLN_modulation.0",) * 2])
    return keys


def read_native(shapes: Shapes) -> tuple[dict[str, object], KeyMap]:
    """ZImageTransformer2DModel's configuration, read off the original file's shapes, and its key map."""
    hidden, patch_width = shapes["x_embedder.weight"]
    layers, refiners = count_blocks(shapes, "layers"), count_blocks(shapes, "noise_refiner")
    head = shapes["layers.0.attention.q_norm.weight"][0]
    config: dict[str, object] = {
        "in_channels": patch_width // 4,
        "dim": hidden,
        "n_layers": layers,
        "n_refiner_layers": refiners,
        "n_heads": hidden // head,
        "n_kv_heads": hidden // head,
        "cap_feat_dim": shapes["cap_embedder.1.weight"][1],
        "axes_dims": (head // 4, head * 3 // 8, head * 3 // 8),  # 32, 48, 48 of 128
        "axes_lens": (1536, 512, 512),
    }
    return config, native_keys(layers, refiners, hidden)


@dataclass(kw_only=True)
class ZImageDenoiser(DiffusersDenoiser):
    """Turns the network's clock and answer round, and hands it each text at its own length."""

    def predict(self, noisy_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        lengths = conditioning["text_mask"].sum(dim=1).tolist()
        texts = conditioning["text"].to(self.dtype)
        answers = self.module(
            list(noisy_BCHW.to(self.dtype).unsqueeze(2)),  # a film of one frame
            1 - sigma_B,
            [text_LD[:length] for text_LD, length in zip(texts, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(answers)).squeeze(2).float()

    def file_key(self, module_path: str) -> str:
        return f"transformer.{module_path}"


def _denoiser(module: nn.Module, variant: str, compute_dtype: torch.dtype | None = None) -> ZImageDenoiser:
    objective = VARIANTS[variant].objective
    denoiser = ZImageDenoiser(
        family=NAME, module=module, objective=objective, target_presets=TARGETS, compute_dtype=compute_dtype
    )
    clock = cast(nn.Module, module.t_embedder)
    clock.forward = partial(_embed_time, clock, denoiser.dtype)
    return denoiser


def _embed_time(clock: nn.Module, dtype: torch.dtype, t_B: Tensor) -> Tensor:
    """diffusers' own, in the dtype of the activations instead of the weights', which may be fp8."""
    size = clock.frequency_embedding_size
    waves_BD = clock.timestep_embedding(t_B, size)  # type: ignore[operator]
    return cast(nn.Module, clock.mlp)(waves_BD.to(dtype))


class ZImage:
    """The family of Z-Image."""

    name = NAME
    variants: Mapping[str, Variant] = VARIANTS
    latent_space = LatentSpace(channels=16, scale=0.3611, shift=0.1159)
    bucket_step = 16
    lora_names = LORA_NAMES
    lora_layouts = DIT
    comfy = COMFY

    def lora_map(self, widths: Widths) -> KeyMap:
        refiners = widths.blocks("noise_refiner", "context_refiner")
        hidden = widths.rows(r"to[._]q$") or widths.width(r"attention[._]qkv$")  # the modulation's input is narrower
        return native_keys(widths.blocks("layers"), refiners, hidden)

    def key_map(self, shapes: Shapes) -> KeyMap:
        return read_native(shapes)[1]

    def original_keys(self, config: Mapping[str, Any], keys: Iterable[str]) -> KeyMap:
        return native_keys(config["n_layers"], config["n_refiner_layers"], config["dim"])

    def target_presets(self, paths: Iterable[str]) -> Mapping[str, Targets]:
        return TARGETS

    def detect(self, shapes: Shapes) -> str | None:
        native = "layers.0.attention.qkv.weight" in shapes
        diffusers = f"all_x_embedder.{PATCH}.weight" in shapes
        mine = {"cap_pad_token", "layers.0.adaLN_modulation.0.weight"} <= shapes.keys() and not shapes.keys() & OTHERS
        return "z-image" if mine and (native or diffusers) else None

    def told_variant(self, source: Source, variant: str) -> str:
        """Turbo by its name, as the table of known models has it: its weights have the base's names and shapes."""
        told = tell(Z_IMAGE_ROWS, COMFY.model_classes[0], COMFY.told_by, source.names)
        return "z-image-turbo" if told and told.row.distilled == "steps" else variant

    def load_denoiser(self, source: Source, variant: str, loading: Loading) -> ZImageDenoiser:
        from diffusers import ZImageTransformer2DModel

        module = load(ZImageTransformer2DModel, source, read_native, loading)
        return _denoiser(module, variant, loading.compute_dtype)

    def needed_parts(self, source: Source) -> tuple[str, ...]:
        return ("text_encoder", "tokenizer", "vae")

    def load_encoders(
        self, source: Source, variant: str, loading: Loading, reading: PromptEncoding = DEFAULT_PROMPT_ENCODING
    ) -> Encoders:
        from transformers import Qwen3Model

        folder = source.encoder_folder()
        FolderParts(folder, source).check(self.needed_parts(source))
        module = load_network(Qwen3Model, folder, "text_encoder", loading)
        tokenizer = load_tokenizer(folder, "tokenizer")
        text = ChatText(module, tokenizer, template=TEMPLATE, max_tokens=VARIANTS[variant].max_text_tokens)
        return Encoders(text, codec_of(source, loading))

    def condition(self, texts: Sequence[Text], geometries: Sequence[Geometry], guidance: float) -> Conditioning:
        return pad_and_mask([text["text"] for text in texts])

    def tiny(self, seed: int = 0) -> Tiny:
        from diffusers import ZImageTransformer2DModel

        config: dict[str, Any] = {
            "in_channels": 16, "dim": 48, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3,
            "cap_feat_dim": 32, "axes_dims": (4, 6, 6), "axes_lens": (1536, 512, 512),
        }  # fmt: skip
        qwen = tiny_qwen3(seed + 1, width=32, tokens=512)
        vae = tiny_vae(seed, 16)
        return Tiny(
            vae=vae,
            denoiser=_denoiser(random_network(ZImageTransformer2DModel, config, seed), "z-image"),
            encoders=Encoders(ChatText(*qwen, template=TEMPLATE, max_tokens=256), KlCodec(vae)),
            part="transformer",
            text_parts={"text_encoder": qwen},
        )


FAMILY = ZImage()
