"""How LoRA files name a family's modules so that ComfyUI finds them, and telling whose LoRA a file is by its names."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from .keymap import KeyMap

NATIVE_PREFIXES = ("diffusion_model.", "lora_unet_")
"""ComfyUI takes these before the original path of any family. After a prefix that ends in _, dots are underscores."""
ATTENTION_ROWS = "_qkv"
"""What stands behind the path of a module whose LoRA changes the rows of query, key and value alone (USO's for Flux)."""
TEXT_ENCODERS = (
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
    "text_encoders.",
    "text_encoder.",
    "text_encoder_2.",
)
"""Modules of text encoders, which a LoRA file may hold in addition to those of the network."""


@dataclass(frozen=True, kw_only=True)
class LoraNames:
    """The names of a family's modules in LoRA files, as regular expressions."""

    native: str
    """Regular expression of the original paths of the modules that can have a LoRA."""
    prefixes: tuple[str, ...] = ()
    """What ComfyUI takes before a diffusers path; the first is what this project writes. Without one it writes original
    paths, because the diffusers ones do not lead to the right rows."""
    diffusers: str = ""
    """The same for the paths of diffusers."""
    sizes: Mapping[str, tuple[int, ...]]
    """{regular expression of a module key: the widths of its input in this family}, where families share names."""
    aliases: Callable[[KeyMap], KeyMap] = lambda keymap: {}
    """{path by yet another name that ComfyUI takes + ".weight": where it lies in an original file}, from the family's map."""
    alias_names: str = ""
    """Regular expression of these paths."""
    alias_prefixes: tuple[str, ...] = ()
    """What ComfyUI takes before them, where it is not `prefixes`."""
    twins: tuple[tuple[str, str], ...] = ()
    """(part of a name, another word for it) that ComfyUI takes alike."""
    attention_rows: str = ""
    """Regular expression of original paths whose rows of query, key and value, three times the input's width, go by a name of their
    own: `ATTENTION_ROWS` behind the path."""

    def matches(self, key: str) -> bool:
        """Whether ComfyUI knows this module key in some model of the family."""
        alias = bool(self.alias_names) and _matches(key, self.alias_prefixes or self.prefixes, self.alias_names)
        return alias or self.is_attention_rows(key) or self.matches_own(key)

    def is_attention_rows(self, key: str) -> bool:
        """Whether a module key means the rows of query, key and value of a fused module."""
        module = key.removesuffix(ATTENTION_ROWS) if key.endswith(ATTENTION_ROWS) else ""
        return bool(self.attention_rows and module) and _matches(module, NATIVE_PREFIXES[:1], self.attention_rows)

    def matches_own(self, key: str) -> bool:
        """The same without the names of relatives that ComfyUI takes too."""
        return self.matches_diffusers(key) or _matches(key, NATIVE_PREFIXES, self.native)

    def matches_diffusers(self, key: str) -> bool:
        """Whether it is a prefix and a diffusers path."""
        return _matches(key, self.prefixes, self.diffusers)

    def sized(self, inputs: Mapping[str, int]) -> bool:
        """Whether the modules' input widths are those of this family, as far as it has a say."""
        return all(
            width in widths
            for expression, widths in self.sizes.items()
            for key, width in inputs.items()
            if width and re.search(expression, key)
        )


def spell(prefix: str, path: str) -> str:
    """Module key of a path: "transformer." + "a.b", or "lora_unet_" + "a_b"."""
    return prefix + (path.replace(".", "_") if prefix.endswith("_") else path)


def _matches(key: str, prefixes: Iterable[str], expression: str) -> bool:
    return any(
        key.startswith(prefix) and _pattern(expression, prefix.endswith("_")).fullmatch(key[len(prefix) :]) is not None
        for prefix in prefixes
    )


@cache
def _pattern(expression: str, underscores: bool) -> re.Pattern[str]:
    return re.compile(expression.replace(r"\.", "_") if underscores else expression)


def is_text_encoder(key: str) -> bool:
    """Whether a module key of a LoRA file belongs to a text encoder."""
    return key.startswith(TEXT_ENCODERS)


_CLIP_MODULE = re.compile(
    r"(?:lora_te([12]?)_|text_encoder(_2)?\.)(?:text_model[._])?encoder[._]layers[._](\d+)[._]"
    r"(?:(self_attn)[._]([qkv]_proj|out_proj)|(mlp)[._](fc[12]))"
)


def text_key_in(format: str, key: str, *, single: bool) -> str | None:
    """A CLIP's module in another layout: lora_te1_text_model_encoder_layers_0_mlp_fc1 (native, kohya), or
    text_encoder.text_model.encoder.layers.0.mlp.fc1 (diffusers). None for what is neither attention nor feed-forward of a CLIP.

    `single`: the model has one text encoder, which goes without a number in kohya's names.
    """
    match = _CLIP_MODULE.fullmatch(key)
    if match is None:
        return None
    second = "2" in (match[1] or match[2] or "")
    path = f"text_model.encoder.layers.{match[3]}.{match[4] or match[6]}.{match[5] or match[7]}"
    if format == "diffusers":
        return spell("text_encoder_2." if second else "text_encoder.", path)
    return spell(f"lora_te{'' if single else 2 if second else 1}_", path)


def owners(names: Mapping[str, LoraNames], inputs: Mapping[str, int]) -> list[str]:
    """The families that most of the modules belong to: one, several that cannot be distinguished, or none.

    `names` is {family: its names}, `inputs` {module key: width of its input, 0 if unknown}.
    """
    keys = [key for key in inputs if not is_text_encoder(key)]
    counts = {family: sum(map(own.matches, keys)) for family, own in names.items()}
    most = max(counts.values(), default=0)
    if not most:
        return []
    best = [family for family, count in counts.items() if count == most]
    best = [family for family in best if names[family].sized(inputs)] or best
    own_counts = {family: sum(map(names[family].matches_own, keys)) for family in best}
    return [family for family in best if own_counts[family] == max(own_counts.values())]


def unmatched(names: LoraNames, keys: Iterable[str]) -> list[str]:
    """Module keys that ComfyUI would leave out, with a warning in its log only."""
    return sorted(key for key in keys if not names.matches(key) and not is_text_encoder(key))
