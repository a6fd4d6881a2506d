"""The tensors of a base model that the modules of a LoRA file change, under every key that ComfyUI accepts for them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import families
from ..base_model import Base
from ..errors import ModelFileError
from ..families.common.keymap import KeyMap, Part
from ..families.common.lora_layouts import Widths
from ..families.common.lora_names import (
    ATTENTION_ROWS,
    NATIVE_PREFIXES,
    LoraNames,
    is_text_encoder,
    owners,
    spell,
    unmatched,
)
from ..storage.tensor_file import TensorFile
from ..types import Shapes
from .inspect import input_width, modules_of
from .merge_base import WeightSlice
from .text_encoder_keys import text_parts

WEIGHT = ".weight"


KeyMatch = dict[str, tuple[WeightSlice, ...]]
"""{path or module key: the slices of the base model's tensors that make up its weight}, see `merge_base.WeightSlices`."""


def base_slices(base: Base) -> KeyMatch:
    """Returns {module key of a LoRA file: its weight's slices}, under every accepted key. Only headers are read.

    Norms and other vectors are among them: LyCORIS files hold changes of these too.
    """
    names = base.family.lora_names
    spellings = [
        (names.alias_prefixes or names.prefixes, alias_slices(base)),
        (names.prefixes, diffusers_slices(base, vectors=True)),
        (NATIVE_PREFIXES, native_slices(base, vectors=True)),
    ]
    found = {
        spell(prefix, path): slices
        for prefixes, by_path in spellings
        for path, slices in by_path.items()
        for prefix in prefixes
    }
    own = native_slices(base, vectors=True)
    found |= {key.replace(*pair): slices for pair in names.twins for key, slices in found.items() if pair[0] in key}
    found |= {spell(NATIVE_PREFIXES[0], path): slices for path, slices in _attention_rows(base, own).items()}
    accepted = {spell(prefix, path) for path in own for prefix in NATIVE_PREFIXES}
    shapes = base.source.shapes
    return {
        key: slices
        for key, slices in found.items()
        if key in accepted or len(shapes[slices[0].key]) < 2 or names.matches(key)
    }


def _attention_rows(base: Base, own: KeyMatch) -> KeyMatch:
    """Returns {path + _qkv: the slices of query, key and value} of the fused modules that ComfyUI takes by such a name."""
    expression, shapes = base.family.lora_names.attention_rows, base.source.shapes
    found: KeyMatch = {}
    for path, slices in own.items() if expression else ():
        if not re.fullmatch(expression, path):
            continue
        rows = 3 * shapes[slices[0].key][1]
        if not base.source.is_diffusers:
            found[path + ATTENTION_ROWS] = (WeightSlice(slices[0].key, (0, rows)),)
        elif parts := [one for one in slices if one.of_module and one.of_module[0] < rows]:
            found[path + ATTENTION_ROWS] = tuple(
                WeightSlice(one.key, None, (one.of_module[0], rows)) for one in parts if one.of_module
            )
    return found


def written_slices(base: Base) -> KeyMatch:
    """Returns {module key: its weight's slices}, under the key that this project writes."""
    names = base.family.lora_names
    prefix, by_path = (names.prefixes[0], diffusers_slices(base, swapped=False)) if names.prefixes else (NATIVE_PREFIXES[0], native_slices(base))  # fmt: skip
    spelled = {spell(prefix, path): slices for path, slices in by_path.items()}
    return {key: slices for key, slices in spelled.items() if names.matches(key)}


def native_slices(base: Base, *, vectors: bool = False) -> KeyMatch:
    """Returns {path of the original model: its weight's slices}. In a diffusers folder a fused module has several."""
    shapes = base.source.shapes
    if not base.source.is_diffusers:
        return {
            key.removesuffix(WEIGHT): (WeightSlice(key),) for key, s in shapes.items() if _is_weight(key, s, vectors)
        }
    if not any(layout.original for layout in base.family.lora_layouts.values()):
        return {}
    by_path: dict[str, list[WeightSlice]] = {}
    whole = {part.native: part.rows[1] for part in _by_rows(base) if part.rows}
    for key, part in _folder_map(base).items():
        if key.endswith(WEIGHT) and key in shapes:
            total = max(whole.get(part.native, 0), shapes[key][0])
            by_path.setdefault(part.native.removesuffix(WEIGHT), []).extend(_pieces(key, part, shapes[key][0], total))
    return {
        path: tuple(pieces)
        for path, pieces in by_path.items()
        if sum(_height(piece, shapes) for piece in pieces)
        == (pieces[0].of_module or (0, _height(pieces[0], shapes)))[1]
    }


def _is_weight(key: str, shape: tuple[int, ...], vectors: bool) -> bool:
    return key.endswith(WEIGHT) and len(shape) > (0 if vectors else 1)


def _is_matrix(key: str, shape: tuple[int, ...]) -> bool:
    return key.endswith(WEIGHT) and len(shape) > 1


def _folder_map(base: Base) -> KeyMap:
    """The key map of the family for the denoiser in a diffusers folder."""
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
    """The parts of fused modules, in the order of their rows."""
    return sorted((part for part in _folder_map(base).values() if part.rows), key=lambda part: part.rows or (0, 0))


def _pieces(key: str, part: Part, height: int, total: int) -> list[WeightSlice]:
    """The slices of a diffusers tensor that hold rows of a module of the original model."""
    if part.swap_halves:
        half = height // 2
        return [WeightSlice(key, (half, height), (0, height)), WeightSlice(key, (0, half), (half, height))]
    return [WeightSlice(key, None, (part.rows[0], total) if part.rows else None)]


def _height(piece: WeightSlice, shapes: Shapes) -> int:
    """Number of rows of a slice."""
    return piece.rows[1] - piece.rows[0] if piece.rows else shapes[piece.key][0]


def diffusers_slices(base: Base, *, vectors: bool = False, swapped: bool = True) -> KeyMatch:
    """Returns {diffusers path of a Linear or convolution: its weight's slices}, with `vectors` of a norm too.

    `swapped`: also modules whose rows an original file has in another order (shift and scale of the last modulation).
    """
    shapes = base.source.shapes
    if base.source.is_diffusers:
        return {
            key.removesuffix(WEIGHT): (WeightSlice(key),) for key, s in shapes.items() if _is_weight(key, s, vectors)
        }
    keymap = base.family.key_map(shapes)
    return _of_map({key: part for key, part in keymap.items() if swapped or not part.swap_halves}, shapes, vectors)


def _of_map(keymap: KeyMap, shapes: Shapes, vectors: bool) -> KeyMatch:
    """Returns {path: the slices of the original tensors that make up its weight}."""
    return {
        key.removesuffix(WEIGHT): _of_part(part, shapes[part.native][0])
        for key, part in keymap.items()
        if part.native in shapes and _is_weight(key, shapes[part.native], vectors)
    }


def _of_part(part: Part, height: int) -> tuple[WeightSlice, ...]:
    """Where a module lies in an original tensor of `height` rows; two slices where shift and scale change places."""
    if not part.swap_halves:
        return (WeightSlice(part.native, part.rows),)
    half = height // 2
    return (WeightSlice(part.native, (half, height), (0, height)), WeightSlice(part.native, (0, half), (half, height)))


def alias_slices(base: Base) -> KeyMatch:
    """Returns {path by another name that ComfyUI takes: its weight's slices}; of a diffusers folder those of whole modules."""
    keymap = _folder_map(base) if base.source.is_diffusers else base.family.key_map(base.source.shapes)
    aliases = base.family.lora_names.aliases(keymap)
    if not base.source.is_diffusers:
        return _of_map(aliases, base.source.shapes, vectors=True)
    own = {part: key for key, part in keymap.items() if key in base.source.shapes}
    return {alias.removesuffix(WEIGHT): (WeightSlice(own[part]),) for alias, part in aliases.items() if part in own}


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The model family of a LoRA file, and which of its keys ComfyUI will use."""

    families: tuple[str, ...]
    """The family; several if names and sizes fit them equally, none if they fit no family."""
    modules: int
    text_encoder: int
    """Number of modules of text encoders among them."""
    unmatched: tuple[str, ...]
    """Modules that ComfyUI ignores."""
    judged_by: str
    """What the keys were compared with: the base model, or the names of the family."""

    def text(self) -> str:
        """The result in up to three lines."""
        known = self.modules - len(self.unmatched)
        lines = [
            f"made for {_who(self.families)}; ComfyUI matches {known} of {self.modules} modules (by {self.judged_by})"
        ]
        if self.text_encoder:
            lines.append(f"{self.text_encoder} modules belong to text encoders")
        if self.unmatched:
            lines.append(f"ignored by ComfyUI, without an error: {', '.join(self.unmatched[:3])}" + (", …" if len(self.unmatched) > 3 else ""))  # fmt: skip
        return "\n".join(lines)


def recognise(path: Path, base: Base | None = None) -> Recognition:
    """Recognise a LoRA file by its header. With a base model, its keys are compared with the base's. Raises ModelFileError."""
    file = TensorFile(path)
    modules, _ = modules_of(file)
    names = {name: family.lora_names for name, family in families.all_families().items()}
    matches = owners(names, {key: input_width(file, parts) for key, parts in modules.items()})
    if base is not None:
        known = set(base_slices(base)).union(*(part.slices for part in text_parts(base)))
        has_text = bool(text_parts(base))
        lost = sorted(key for key in modules if key not in known and (has_text or not is_text_encoder(key)))
    elif matches:
        lost = unmatched(names[matches[0]], modules)
    else:
        lost = sorted(key for key in modules if not is_text_encoder(key))
    return Recognition(
        families=tuple(matches),
        modules=len(modules),
        text_encoder=sum(map(is_text_encoder, modules)),
        unmatched=tuple(lost),
        judged_by=str(base.source.path) if base else "the form of the keys",
    )


def check_one_family(paths: Sequence[Path]) -> None:
    """Raise ModelFileError if LoRA files belong to different families or have different key formats."""
    names = {name: family.lora_names for name, family in families.all_families().items()}
    known: list[tuple[Path, tuple[str, ...], set[str]]] = []
    for path in paths:
        file = TensorFile(path)
        modules, _ = modules_of(file)
        keys = [key for key in modules if not is_text_encoder(key)]
        if keys:  # a LoRA of text encoders alone can be merged with any other
            owner = tuple(owners(names, {key: input_width(file, parts) for key, parts in modules.items()}))
            known.append((path, owner, {_style(names[owner[0]] if owner else None, key) for key in keys}))
    for path, owner, styles in known[1:]:
        first, theirs, others = known[0]
        if not set(owner) & set(theirs) and (owner or theirs):
            raise ModelFileError(
                f"{first} is made for {_who(theirs)}, {path} for {_who(owner)}: only LoRAs of one family can be merged"
            )
        if styles != others:
            raise ModelFileError(
                f"{first} has keys {_joined(others)}, {path} has {_joined(styles)}: convert them to one key format first (lora-loom convert)"
            )


def _style(names: LoraNames | None, key: str) -> str:
    """The prefix of a module key, and whether the path after it is that of the original model or of diffusers."""
    prefixes = {*(names.prefixes if names else ()), *NATIVE_PREFIXES, "unet."}
    for prefix in sorted(prefixes, key=len, reverse=True):  # a name without a prefix begins with "" as every name does
        if key.startswith(prefix):
            is_original = prefix in NATIVE_PREFIXES and names is not None and not names.matches_diffusers(key)
            return f"{prefix}…{' (original names)' if is_original else ''}"
    return "of another format"


def _who(names: Sequence[str]) -> str:
    return " or ".join(names) or "no known family"


def _joined(styles: set[str]) -> str:
    return " and ".join(sorted(styles))
