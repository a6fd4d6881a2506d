"""Which of ComfyUI's loaders a base model needs besides its own, and what their files are usually called.

Kinds and names are those of ComfyUI's own templates (v0.33, `blueprints/`) and of docs/models.md.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

T5, CLIP_L, CLIP_G = r"(?<!um)t5.?xxl", r"clip_l(?!.*hidream)", r"clip_g(?!.*hidream)"
QWEN_VL, QWEN_4B, QWEN_8B = r"qwen.?2\.5_vl_7b", r"qwen_?3_4b(?!.*ace)", r"qwen_?3_8b"
AE, QWEN_VAE, FLUX2_VAE = r"(^|[/\\])ae\b", r"qwen_image_vae", r"flux2.?vae|full_encoder_small_decoder"


@dataclass(frozen=True, kw_only=True)
class Loaders:
    """The node that loads a model's text encoders, and regular expressions for its files and the VAE's."""

    node: str
    kind: str
    """What its input `type` is; "" for a node without one."""
    texts: tuple[str, ...]
    vae: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the node's inputs, one for each text encoder."""
        return ("clip_name",) if len(self.texts) == 1 else tuple(f"clip_name{n}" for n in range(1, len(self.texts) + 1))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a class of comfy.model_base needs, where its network's configuration has these values."""

    model_class: str
    config: Mapping[str, object] = field(default_factory=dict)
    loaders: Loaders


def _one(kind: str, text: str, vae: str) -> Loaders:
    return Loaders(node="CLIPLoader", kind=kind, texts=(text,), vae=vae)


def _two(kind: str, first: str, second: str, vae: str) -> Loaders:
    return Loaders(node="DualCLIPLoader", kind=kind, texts=(first, second), vae=vae)


def _rule(model_class: str, loaders: Loaders, **config: object) -> Rule:
    return Rule(model_class=model_class, config=config, loaders=loaders)


RULES = (
    _rule("BaseModel", _one("stable_diffusion", r"clip_h|open_clip|sd2", r"vae-ft|kl-f8"), context_dim=1024),
    _rule("BaseModel", _one("stable_diffusion", CLIP_L, r"vae-ft|kl-f8")),
    _rule("SDXL", _two("sdxl", CLIP_L, CLIP_G, r"sdxl.?vae")),
    _rule("SD3", Loaders(node="TripleCLIPLoader", kind="", texts=(CLIP_L, CLIP_G, T5), vae=r"sd3")),
    _rule("Flux", _two("flux", CLIP_L, T5, AE)),
    _rule("Flux2", _one("flux2", QWEN_4B, FLUX2_VAE), context_in_dim=7680),
    _rule("Flux2", _one("flux2", QWEN_8B, FLUX2_VAE), context_in_dim=12288),
    _rule("Flux2", _one("flux2", r"mistral", FLUX2_VAE)),
    _rule("LongCatImage", _one("longcat_image", QWEN_VL, AE)),
    _rule("Lumina2", _one("lumina2", QWEN_4B, AE), z_image_modulation=True),
    _rule("Lumina2", _one("lumina2", r"gemma_?2_2b", AE)),
    _rule("QwenImage", _one("qwen_image", QWEN_VL, r"qwen_image_layered_vae"), use_additional_t_cond=True),
    _rule("QwenImage", _one("qwen_image", QWEN_VL, QWEN_VAE)),
    _rule("Krea2", _one("krea2", r"qwen3vl_4b", QWEN_VAE)),
    _rule("Anima", _one("stable_diffusion", r"qwen_?3_06b", QWEN_VAE)),
    _rule("Chroma", _one("chroma", T5, AE)),
    _rule("ChromaRadiance", _one("chroma", T5, r"pixel_space")),
    _rule(
        "HiDream",
        Loaders(
            node="QuadrupleCLIPLoader",
            kind="",
            texts=(r"clip_l.*hidream|clip_l", r"clip_g.*hidream|clip_g", T5, r"llama"),
            vae=AE,
        ),
    ),
    _rule("HunyuanImage21", _two("hunyuan_image", QWEN_VL, r"byt5", r"hunyuan_image_2")),
    _rule("HunyuanVideo15", _two("hunyuan_video_15", QWEN_VL, r"byt5", r"hunyuan.?video.?15.?vae")),
    _rule("MageFlow", _one("mage", r"qwen_?3.?vl_4b|mage", r"mage")),
    _rule("WAN21", _one("wan", r"umt5.?xxl", r"wan.?2.1.?vae")),
    _rule("WAN22", _one("wan", r"umt5.?xxl", r"wan.?2\.2.?vae")),
    _rule("Omnigen2", _one("omnigen2", r"qwen_2\.5_vl_(fp16|3b)|omnigen2", AE)),
    _rule("Kandinsky5Image", _two("kandinsky5_image", QWEN_VL, CLIP_L, AE)),
    _rule("ErnieImage", _one("flux2", r"ministral", FLUX2_VAE)),
    _rule("Lens", _one("lens", r"gpt.?oss", FLUX2_VAE)),
    _rule("Ideogram4", _one("ideogram4", r"qwen3vl_8b", FLUX2_VAE)),
)
UNKNOWN = _one("stable_diffusion", r"(?!)", r"(?!)")
"""For a model that no rule is for: the user chooses the files, and the kind on the node."""


def loaders_for(model_class: str, config: Mapping[str, object]) -> Loaders:
    """The first rule that fits a model; UNKNOWN without one."""
    for rule in RULES:
        if rule.model_class == model_class and all(config.get(name) == value for name, value in rule.config.items()):
            return rule.loaders
    return UNKNOWN


def likely(pattern: str, files: Iterable[str]) -> str:
    """The first of these files that is called so; "" if none is."""
    return next((name for name in files if re.search(pattern, name, re.IGNORECASE)), "")
