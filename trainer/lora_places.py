"""Where in a base model's files the modules of a LoRA lie, under every name that ComfyUI takes for them."""

from dataclasses import dataclass
from pathlib import Path

from . import families
from .base_model import Base
from .families.lora_names import NATIVE_PREFIXES, is_text_encoder, owners, spell, unmatched
from .lora.merge_base import Place
from .lora.tools import input_width, modules_of
from .tensor_files import TensorFile

WEIGHT = ".weight"


def places(base: Base) -> dict[str, Place]:
    """{module key of a LoRA file: where its weight is}. Only headers are read."""
    spellings = [(base.family.lora_names.prefixes, diffusers_places(base)), (NATIVE_PREFIXES, native_places(base))]
    return {
        spell(prefix, path): place
        for prefixes, found in spellings
        for path, place in found.items()
        for prefix in prefixes
    }


def own_places(base: Base) -> dict[str, Place]:
    """The same under the one name that this project writes."""
    names = base.family.lora_names
    prefix, found = (names.prefixes[0], diffusers_places(base)) if names.prefixes else (NATIVE_PREFIXES[0], native_places(base))  # fmt: skip
    spelled = {spell(prefix, path): place for path, place in found.items()}
    return {key: place for key, place in spelled.items() if names.matches(key)}


def native_places(base: Base) -> dict[str, Place]:
    """{original path: where its weight is}; empty for a diffusers folder."""
    shapes = {} if base.source.is_diffusers else base.source.shapes
    return {key.removesuffix(WEIGHT): Place(key) for key, s in shapes.items() if key.endswith(WEIGHT) and len(s) > 1}


def diffusers_places(base: Base) -> dict[str, Place]:
    """{diffusers path of a Linear or convolution: where its weight is}.

    Rows that an original file keeps in another order (shift and scale of the last modulation) are left out.
    """
    shapes = base.source.shapes
    if base.source.is_diffusers:
        return {
            key.removesuffix(WEIGHT): Place(key) for key, s in shapes.items() if key.endswith(WEIGHT) and len(s) > 1
        }
    return {
        key.removesuffix(WEIGHT): Place(part.native, part.rows)
        for key, part in base.family.key_map(shapes).items()
        if key.endswith(WEIGHT) and len(shapes.get(part.native, ())) > 1 and not part.swap_halves
    }


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """Whose LoRA a file is, and what ComfyUI will make of its keys."""

    families: tuple[str, ...]
    """One; several whose names and sizes the file fits equally; none if nothing fits."""
    modules: int
    text_encoder: int
    """Modules of text encoders among them."""
    unmatched: tuple[str, ...]
    """Modules that ComfyUI leaves out."""
    judged_by: str
    """The base file, or the family's names."""

    def text(self) -> str:
        who = " or ".join(self.families) or "no known family"
        known = self.modules - len(self.unmatched)
        lines = [f"made for {who}; ComfyUI matches {known} of {self.modules} modules (by {self.judged_by})"]
        if self.text_encoder:
            lines.append(f"{self.text_encoder} modules are of text encoders")
        if self.unmatched:
            lines.append(f"left out by ComfyUI, without an error: {', '.join(self.unmatched[:3])}" + (", …" if len(self.unmatched) > 3 else ""))  # fmt: skip
        return "\n".join(lines)


def recognise(path: Path, base: Base | None = None) -> Recognition:
    """Header alone. With a base, keys are looked up in it instead of judged by their form. Raises ModelFileError."""
    file = TensorFile(path)
    modules, _ = modules_of(file)
    names = {name: family.lora_names for name, family in families.all_families().items()}
    found = owners(names, {key: input_width(file, parts) for key, parts in modules.items()})
    if base is not None:
        known = places(base)
        lost = sorted(key for key in modules if key not in known and not is_text_encoder(key))
    elif found:
        lost = unmatched(names[found[0]], modules)
    else:
        lost = sorted(key for key in modules if not is_text_encoder(key))
    return Recognition(
        families=tuple(found),
        modules=len(modules),
        text_encoder=sum(map(is_text_encoder, modules)),
        unmatched=tuple(lost),
        judged_by=str(base.source.path) if base else "the form of their names",
    )
