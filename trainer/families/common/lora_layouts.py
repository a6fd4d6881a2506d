"""How the three layouts of LoRA files spell a family's modules, and which rows of which modules they mean.

native: what this project trains and ComfyUI applies whole. diffusers: what `load_lora_weights` takes. kohya: sd-scripts'.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .keymap import KeyMap
from .lora_names import LoraNames, spell

FORMATS = ("native", "diffusers", "kohya")


@dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """How a layout of LoRA files writes the name of a module and its tensors."""

    prefix: str
    original: bool = False
    """Paths of the original file, q k v often as one; else those of diffusers."""
    kohya: bool = False
    """Tensors are called lora_down and lora_up, else lora_A and lora_B."""
    alpha: bool = True
    """alpha stands in the file; else it is multiplied in."""


DIT = {
    "native": KeyLayout(prefix="transformer."),
    "diffusers": KeyLayout(prefix="transformer.", alpha=False),
    "kohya": KeyLayout(prefix="lora_unet_", original=True, kohya=True),
}
"""Transformers whose projections are trained apart."""
FUSED_DIT = {**DIT, "native": KeyLayout(prefix="diffusion_model.", original=True)}
"""Transformers that are trained as in the original file."""
UNET = {
    "native": KeyLayout(prefix="lora_unet_", kohya=True),
    "diffusers": KeyLayout(prefix="unet.", alpha=False),
    "kohya": KeyLayout(prefix="lora_unet_", kohya=True),
}

UNET_ORIGINAL = {**UNET, "kohya": KeyLayout(prefix="lora_unet_", original=True, kohya=True)}
"""SDXL, for which sd-scripts writes the original file's paths."""

ORIGINAL_PREFIXES = ("diffusion_model.", "lora_unet_")


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What a LoRA file reveals of its network: module keys, the narrowest input in its blocks, rows of a fused q k v."""

    inputs: Mapping[str, int]
    """{module key: width of its input}."""
    outputs: Mapping[str, int]
    layers: int = 0
    """Resnets per level of a UNet on the way down; 0: as far as the file tells."""

    def blocks(self, *stems: str) -> int:
        """How many blocks the file reaches to: 1 + the largest number behind one of the stems."""
        pattern = re.compile(rf"(?<!single_)(?<![a-z])({'|'.join(stems)})[._](\d+)[._]")
        return 1 + max((int(match[2]) for key in self.inputs if (match := pattern.search(key))), default=-1)

    @property
    def hidden(self) -> int:
        """Width of the stream: the narrowest input of a module in a block."""
        return min((width for key, width in self.inputs.items() if re.search(r"[._]\d+[._]", key)), default=0)

    def width(self, ending: str) -> int:
        """Input width of the modules whose key matches; 0 if there is none."""
        return max((width for key, width in self.inputs.items() if re.search(ending, key)), default=0)

    def rows(self, ending: str) -> int:
        """Rows of the modules whose key matches; 0 if there is none."""
        return max((rows for key, rows in self.outputs.items() if re.search(ending, key)), default=0)


def spelled(keymap: KeyMap, names: LoraNames, layouts: Mapping[str, KeyLayout]) -> dict[str, tuple[bool, str]]:
    """Returns {module key, as any loader spells it: (original?, path)} for the modules of a map."""
    diffusers = [key.removesuffix(".weight") for key in keymap if key.endswith(".weight")]
    originals = {part.native.removesuffix(".weight") for key, part in keymap.items() if key.endswith(".weight")}
    found: dict[str, tuple[bool, str]] = {}
    known = {part: key for key, part in keymap.items()}
    for key, part in names.aliases(
        keymap
    ).items():  # of pieces that neither file has by itself only whole modules are read
        path = key.removesuffix(".weight")
        target = (
            (False, known[part].removesuffix(".weight"))
            if part in known
            else (True, part.native.removesuffix(".weight"))
        )
        if key.endswith(".weight") and (part in known or part.rows is None):
            found |= {spell(prefix, path): target for prefix in names.alias_prefixes or names.prefixes}
    prefixes = {*names.prefixes, *(layout.prefix for layout in layouts.values() if not layout.original)}
    for prefix, path in _pairs(ORIGINAL_PREFIXES, originals):
        found[spell(prefix, path)] = (True, path)
    for prefix, path in _pairs(prefixes, diffusers):
        found.setdefault(spell(prefix, path), (False, path))
    return found


def _pairs(prefixes: Iterable[str], paths: Iterable[str]) -> list[tuple[str, str]]:
    every = list(paths)
    return [(prefix, path) for prefix in sorted(prefixes) for path in every]
