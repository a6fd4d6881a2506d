"""Where in a base model's files the modules of a LoRA lie, under every name that ComfyUI takes for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import families
from ..base_model import Base
from ..errors import ModelFileError
from ..families.common.keymap import KeyMap, Part
from ..families.common.lora_layouts import Widths
from ..families.common.lora_names import NATIVE_PREFIXES, LoraNames, is_text_encoder, owners, spell, unmatched
from ..storage.tensor_file import TensorFile
from ..types import Shapes
from .inspect import input_width, modules_of
from .merge_base import WeightSlice
from .text_encoder_keys import text_parts

WEIGHT = ".weight"


KeyMatch = dict[str, tuple[WeightSlice, ...]]
"""{path or module key: where its weight is}, as merge_base.Places."""


def places(base: Base) -> KeyMatch:
    """{module key of a LoRA file: where its weight is}. Only headers are read."""
    spellings = [(base.family.lora_names.prefixes, diffusers_places(base)), (NATIVE_PREFIXES, native_places(base))]
    return {
        spell(prefix, path): place
        for prefixes, found in spellings
        for path, place in found.items()
        for prefix in prefixes
    }


def own_places(base: Base) -> KeyMatch:
    """The same under the one name that this project writes."""
    names = base.family.lora_names
    prefix, found = (names.prefixes[0], diffusers_places(base)) if names.prefixes else (NATIVE_PREFIXES[0], native_places(base))  # fmt: skip
    spelled = {spell(prefix, path): place for path, place in found.items()}
    return {key: place for key, place in spelled.items() if names.matches(key)}


def native_places(base: Base) -> KeyMatch:
    """{original path: where its weight is}; in a diffusers folder a fused module lies in several tensors."""
    shapes = base.source.shapes
    if not base.source.is_diffusers:
        return {key.removesuffix(WEIGHT): (WeightSlice(key),) for key, s in shapes.items() if _is_matrix(key, s)}
    if not any(layout.original for layout in base.family.lora_layouts.values()):
        return {}
    found: dict[str, list[WeightSlice]] = {}
    whole = {part.native: part.rows[1] for part in _by_rows(base) if part.rows}
    for key, part in _folder_map(base).items():
        if key.endswith(WEIGHT) and key in shapes:
            total = max(whole.get(part.native, 0), shapes[key][0])
            found.setdefault(part.native.removesuffix(WEIGHT), []).extend(_pieces(key, part, shapes[key][0], total))
    return {
        path: tuple(pieces)
        for path, pieces in found.items()
        if sum(_height(piece, shapes) for piece in pieces)
        == (pieces[0].of_module or (0, _height(pieces[0], shapes)))[1]
    }


def _is_matrix(key: str, shape: tuple[int, ...]) -> bool:
    return key.endswith(WEIGHT) and len(shape) > 1


def _folder_map(base: Base) -> KeyMap:
    """The family's key map for the network of a diffusers folder."""
    matrices = {key: shape for key, shape in base.source.shapes.items() if _is_matrix(key, shape)}
    prefix = base.family.lora_layouts["diffusers"].prefix
    paths = {f"{prefix}{key.removesuffix(WEIGHT)}": shape for key, shape in matrices.items()}
    layers = (base.source.config or {}).get("layers_per_block", 2)  # of a UNet
    widths = Widths(
        inputs={key: s[1] for key, s in paths.items()},
        outputs={key: s[0] for key, s in paths.items()},
        layers=layers if isinstance(layers, int) else layers[0],
    )
    return base.family.lora_map(widths)


def _by_rows(base: Base) -> list[Part]:
    """Parts of fused modules, the last one of each at the end."""
    return sorted((part for part in _folder_map(base).values() if part.rows), key=lambda part: part.rows or (0, 0))


def _pieces(key: str, part: Part, height: int, total: int) -> list[WeightSlice]:
    """Where rows of an original module lie in a diffusers tensor."""
    if part.swap_halves:
        half = height // 2
        return [WeightSlice(key, (half, height), (0, height)), WeightSlice(key, (0, half), (half, height))]
    return [WeightSlice(key, None, (part.rows[0], total) if part.rows else None)]


def _height(piece: WeightSlice, shapes: Shapes) -> int:
    return piece.rows[1] - piece.rows[0] if piece.rows else shapes[piece.key][0]


def diffusers_places(base: Base) -> KeyMatch:
    """{diffusers path of a Linear or convolution: where its weight is}.

    Rows that an original file keeps in another order (shift and scale of the last modulation) are left out.
    """
    shapes = base.source.shapes
    if base.source.is_diffusers:
        return {key.removesuffix(WEIGHT): (WeightSlice(key),) for key, s in shapes.items() if _is_matrix(key, s)}
    return {
        key.removesuffix(WEIGHT): (WeightSlice(part.native, part.rows),)
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
        known = self.modules - len(self.unmatched)
        lines = [
            f"made for {_who(self.families)}; ComfyUI matches {known} of {self.modules} modules (by {self.judged_by})"
        ]
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
        known = set(places(base)).union(*(part.places for part in text_parts(base)))
        has_text = bool(text_parts(base))
        lost = sorted(key for key in modules if key not in known and (has_text or not is_text_encoder(key)))
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


def check_one_family(paths: Sequence[Path]) -> None:
    """Raises ModelFileError if LoRA files belong to different families, or name the modules of one in different ways."""
    names = {name: family.lora_names for name, family in families.all_families().items()}
    found: list[tuple[Path, tuple[str, ...], set[str]]] = []
    for path in paths:
        file = TensorFile(path)
        modules, _ = modules_of(file)
        keys = [key for key in modules if not is_text_encoder(key)]
        if keys:  # a LoRA of text encoders alone goes with any
            owner = tuple(owners(names, {key: input_width(file, parts) for key, parts in modules.items()}))
            found.append((path, owner, {_style(names[owner[0]] if owner else None, key) for key in keys}))
    for path, owner, styles in found[1:]:
        first, theirs, others = found[0]
        if not set(owner) & set(theirs) and (owner or theirs):
            raise ModelFileError(
                f"{first} is made for {_who(theirs)}, {path} for {_who(owner)}: only LoRAs of one family can be merged"
            )
        if styles != others:
            raise ModelFileError(
                f"{first} calls its modules {_shown(others)}, {path} {_shown(styles)}: bring both into one layout first (lora-loom convert)"
            )


def _style(names: LoraNames | None, key: str) -> str:
    """What a module key begins with, and whether a diffusers or an original path follows."""
    for prefix in (*(names.prefixes if names else ()), *NATIVE_PREFIXES, "unet."):
        if key.startswith(prefix):
            is_original = prefix in NATIVE_PREFIXES and names is not None and not names.matches_diffusers(key)
            return f"{prefix}…{' (original names)' if is_original else ''}"
    return "otherwise"


def _who(found: Sequence[str]) -> str:
    return " or ".join(found) or "no known family"


def _shown(styles: set[str]) -> str:
    return " and ".join(sorted(styles))
