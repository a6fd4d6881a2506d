"""Converting a LoRA file to another key format: other names, projections split or fused, the same change of every weight.

Splitting a fused projection is exact: the parts have the same A, and rows of B. Fusing is exact only if the rank may grow:
three projections of rank r that were trained separately need rank 3 r. O out, I in, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import families
from ..errors import ConfigError, ModelFileError, did_you_mean, reads
from ..families.common.family import Family, has_one_text_encoder
from ..families.common.keymap import KeyMap, Part
from ..families.common.lora_layouts import FORMATS, KeyLayout, Widths, spelled
from ..families.common.lora_names import ATTENTION_ROWS, NATIVE_PREFIXES, is_text_encoder, owners, spell, text_key_in
from ..types import Progress
from .factors import KOHYA, PEFT, Factors, PlainLora, Written, extended, new_dtype, open_lora, write_lora
from .inspect import weight_size
from .merge import add

Modules = dict[str, Factors]
"""{module path: its adapter}."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The report on a conversion."""

    family: str
    format: str
    modules_before: int
    modules_after: int
    split: int
    """Number of fused modules that were split."""
    fused: int
    """Number of fused modules that were made of several."""
    rank_before: int
    rank_after: int
    """Largest rank of a module in the new file."""

    def text(self) -> str:
        """The report in up to three lines."""
        lines = [f"{self.family}, {self.format}: {self.modules_before} modules became {self.modules_after}"]
        if self.split:
            lines.append(f"{self.split} fused modules were split, which is exact")
        if self.fused:
            lines.append(f"{self.fused} fused modules combine modules that were trained separately, which is exact at rank {self.rank_after} instead of {self.rank_before}")  # fmt: skip
        return "\n".join(lines)


@reads(lambda source, *_, **__: source)
def convert(
    source: Path,
    target: Path,
    format: str,
    family: str = "auto",
    dtype: str = "auto",
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write the LoRA `source` in the key format `format`. `family` "auto" is detected from the keys.

    Raises ConfigError for unknown names, ModelFileError if the file cannot be converted, RunError if it cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format = {format!r}: {did_you_mean(format, list(FORMATS))}")
    lora = open_lora(source)
    owner, *others = _families(lora, family)
    texts = _text_modules(lora, format, owner)
    layout = owner.lora_layouts[format]
    keymap = owner.lora_map(_widths(lora))
    old = _resolved(lora, owner, keymap)
    try:
        new = rearranged(old, keymap, layout)
    except ModelFileError as error:
        raise ModelFileError(f"{source}: {error}") from error
    if any(_sizes_for(lora, other, format) != _sizes(new) for other in others):
        raise ModelFileError(_ambiguous(lora, [owner, *others]))
    formats = {lora.dtype(key) for key in lora.modules}
    stored = new_dtype(dtype, max(formats, key=lambda kind: kind.itemsize))
    written = {}
    for key, factors in keyed(new.modules, owner, keymap, format).items():
        written[key] = as_written(factors, layout, stored)
        progress(len(written), len(new.modules))
    for key, name in texts.items():
        written[name] = as_written(lora.factors(key), text_layout(format), stored)
    done = Conversion(
        family=owner.name, format=format, modules_before=len(lora.modules), modules_after=len(written),
        split=new.split, fused=new.fused,
        rank_before=max(factors.rank for _, factors in old.values()),
        rank_after=max(factors.rank for factors in new.modules.values()),
    )  # fmt: skip
    write_lora(target, written, extended(lora.metadata, written, "convert", {"format": format}))
    return done


def _text_modules(lora: PlainLora, format: str, family: Family) -> dict[str, str]:
    """Returns {module of a text encoder: its key in the format}; ComfyUI and kohya have the same keys. Raises ModelFileError."""
    single = has_one_text_encoder(family)
    texts = {key: text_key_in(format, key, single=single) for key in sorted(lora.modules) if is_text_encoder(key)}
    if format != "diffusers":  # both have the same keys, also for encoders other than CLIP
        texts |= {key: key for key in texts if key.startswith("lora_te")}
    strange = [key for key, name in texts.items() if name is None]
    if strange:
        raise ModelFileError(
            f"{lora.path}: {len(strange)} modules belong to a text encoder other than CLIP, first {strange[0]}: they cannot be converted to {format}"
        )
    if len(texts) == len(lora.modules):
        raise ModelFileError(
            f"{lora.path} holds modules of text encoders only, which do not tell its family: it cannot be converted"
        )
    return {key: name for key, name in texts.items() if name is not None}


def text_layout(format: str) -> KeyLayout:
    """How the tensors of text encoders are written: as sd-scripts does, except in the diffusers format."""
    return KeyLayout(prefix="", alpha=False) if format == "diffusers" else KeyLayout(prefix="", kohya=True)


def _families(lora: PlainLora, wanted: str) -> list[Family]:
    """The family of a LoRA; several whose layouts have the same names. Raises ConfigError for an unknown name, ModelFileError if the keys
    do not tell."""
    if wanted != "auto":
        return [families.get(wanted)]
    names = {name: family.lora_names for name, family in families.all_families().items()}
    inputs = {_comfyui_key(key): width for key, width in _widths(lora).inputs.items()}
    matches = [families.get(name) for name in owners(names, inputs)]
    if len({id(family.lora_layouts) for family in matches}) != 1:
        raise ModelFileError(_ambiguous(lora, matches))
    return matches


def _ambiguous(lora: PlainLora, matches: Sequence[Family]) -> str:
    known = " or ".join(family.name for family in matches) or "no known family"
    return (
        f"{lora.path} fits {known} by its keys: choose the family with --family ({', '.join(families.all_families())})"
    )


def _sizes_for(lora: PlainLora, family: Family, format: str) -> dict[str, tuple[int, int]] | None:
    """What a file would become as one of another family, as `_sizes`; None if it cannot be one."""
    try:
        keymap = family.lora_map(_widths(lora))
        return _sizes(rearranged(_resolved(lora, family, keymap), keymap, family.lora_layouts[format]))
    except ModelFileError:
        return None


def _sizes(new: "Rearranged") -> dict[str, tuple[int, int]]:
    return {path: (factors.up_OR.shape[0], factors.down_RI.shape[1]) for path, factors in new.modules.items()}


def _comfyui_key(key: str) -> str:
    """The key with the prefix lora_unet_ in place of unet., which ComfyUI does not accept and no family's names have."""
    return spell("lora_unet_", key.removeprefix("unet.")) if key.startswith("unet.") else key


def _widths(lora: PlainLora) -> Widths:
    shapes = lora.file.shapes()
    sizes = {
        key: weight_size({name: shapes[tensor] for name, tensor in parts.items()})
        for key, parts in lora.modules.items()
        if not is_text_encoder(key)
    }
    return Widths(
        inputs={key: inputs for key, (_, inputs) in sizes.items()},
        outputs={key: rows for key, (rows, _) in sizes.items()},
    )


def _resolved(lora: PlainLora, family: Family, keymap: KeyMap) -> dict[str, tuple[bool, Factors]]:
    """Returns {path: (whether it is a path of the original model, its adapter)}. Raises ModelFileError for unknown modules."""
    known = spelled(keymap, family.lora_names, family.lora_layouts)
    own = {key for key in lora.modules if not is_text_encoder(key)}
    rows = {key: key.removesuffix(ATTENTION_ROWS) for key in own if family.lora_names.is_attention_rows(key)}
    strange = sorted(key for key in own if rows.get(key, key) not in known)
    if strange:
        raise ModelFileError(
            f"{lora.path}: {len(strange)} of its {len(lora.modules)} modules are not {family.name} modules that can be converted, first {strange[0]}"
        )
    found: dict[str, tuple[bool, Factors]] = {}
    for key in sorted(own - rows.keys()):
        original, path = known[key]
        if path in found:
            raise ModelFileError(
                f"{lora.path} holds {path} under two names, one of them {key}, of which ComfyUI applies one: remove the other"
            )
        found[path] = (original, lora.factors(key))
    for key, module in sorted(rows.items()):
        _add_rows(found, parts_of(keymap, known[module][1]), lora.factors(key), f"{lora.path}: {key}")
    return found


def _add_rows(
    found: dict[str, tuple[bool, Factors]], parts: Sequence[tuple[str, Part]], factors: Factors, where: str
) -> None:
    """Add an adapter of the first rows of a fused module, as adapters of the parts that these rows are. Raises ModelFileError."""
    inside = [(path, part) for path, part in parts if part.rows and part.rows[1] <= len(factors.up_OR)]
    if sum(part.rows[1] - part.rows[0] for _, part in inside if part.rows) != len(factors.up_OR):
        raise ModelFileError(
            f"{where} changes rows of a module that this model does not have apart: merge the file into the base (merge-base), then extract a LoRA"
        )
    for path, part in inside:
        if path in found or part.native.removesuffix(".weight") in found:
            raise ModelFileError(
                f"{where} changes rows that another module of the file changes too: merge it into the base"
            )
        found[path] = (False, replace(factors, up_OR=_rows(factors.up_OR, part)))


@dataclass(kw_only=True)
class Rearranged:
    """The adapters of a conversion by their new paths."""

    modules: Modules
    split: int = 0
    fused: int = 0


def rearranged(old: Mapping[str, tuple[bool, Factors]], keymap: KeyMap, layout: KeyLayout) -> Rearranged:
    """The adapters by the paths of a key format. The conversion is exact."""
    return to_original(old, keymap) if layout.original else to_diffusers(old, keymap)


def keyed(modules: Modules, family: Family, keymap: KeyMap, format: str) -> Modules:
    """Returns {module key: its adapter} of adapters by the paths of a key format.

    What ComfyUI does not know by diffusers' path goes by the original file's in the native format, as training writes it.
    """
    layout, names = family.lora_layouts[format], family.lora_names
    found: Modules = {}
    for path, factors in modules.items():
        key, part = spell(layout.prefix, path), keymap.get(f"{path}.weight")
        if format == "native" and part and not (layout.original or part.rows or names.matches_diffusers(key)):
            moved = to_original({path: (False, factors)}, keymap).modules
            found |= {spell(NATIVE_PREFIXES[0], native): one for native, one in moved.items()}
        else:
            found[key] = factors
    return found


def to_diffusers(old: Mapping[str, tuple[bool, Factors]], keymap: KeyMap) -> Rearranged:
    """The adapters by diffusers paths. Fused modules are split; the conversion is exact."""
    new = Rearranged(modules={})
    for path, (original, factors) in old.items():
        if not original:
            _join(new.modules, path, factors)
            continue
        parts = parts_of(keymap, path)
        new.split += len(parts) > 1
        for name, part in parts:
            _join(new.modules, name, replace(factors, up_OR=_rows(factors.up_OR, part)))
    return new


def _join(modules: Modules, path: str, factors: Factors) -> None:
    """Add an adapter to those by path; where there is one, as for a fused module and its parts in one file, both act."""
    modules[path] = add([(modules[path], 1.0), (factors, 1.0)], path) if path in modules else factors


def to_original(old: Mapping[str, tuple[bool, Factors]], keymap: KeyMap) -> Rearranged:
    """The adapters by paths of the original model. The conversion is exact; ranks add up where separate modules are fused."""
    new = Rearranged(modules={path: factors for path, (original, factors) in old.items() if original})
    pieces: dict[str, list[tuple[Part, Factors]]] = {}
    for path, (original, factors) in old.items():
        if not original:
            part = keymap[f"{path}.weight"]
            pieces.setdefault(part.native.removesuffix(".weight"), []).append((part, factors))
    for native, parts in pieces.items():
        _join(new.modules, native, fuse(parts, total_rows(keymap, native)))
        new.fused += len(parts) > 1
    return new


def parts_of(keymap: KeyMap, native: str) -> list[tuple[str, Part]]:
    """Returns (diffusers path, part) of all parts of a module of the original model."""
    return [(key.removesuffix(".weight"), part) for key, part in keymap.items() if part.native == f"{native}.weight"]


def total_rows(keymap: KeyMap, native: str) -> int:
    """Number of rows of a fused module of the original model; 0 if the module is not fused."""
    return max((part.rows[1] for _, part in parts_of(keymap, native) if part.rows), default=0)


def _rows(up_OR: Tensor, part: Part) -> Tensor:
    rows = up_OR[part.rows[0] : part.rows[1]] if part.rows else up_OR
    return torch.cat(rows.chunk(2)[::-1]) if part.swap_halves else rows


def fuse(pieces: Sequence[tuple[Part, Factors]], rows: int) -> Factors:
    """The adapter of a fused module of `rows` rows from those of its parts. Rows without a part do not change.

    Raises ModelFileError for a part of another size.
    """
    if not rows:
        [(part, factors)] = pieces
        return replace(factors, up_OR=_rows(factors.up_OR, part))
    ordered = sorted(pieces, key=lambda piece: piece[0].rows or (0, 0))
    first = ordered[0][1]
    if all(torch.equal(f.down_RI, first.down_RI) and f.scale == first.scale for _, f in ordered):
        blocks, down, scale = [f.up_OR for _, f in ordered], first.down_RI, first.scale
        offsets = [0] * len(ordered)  # they were split from one module before: their A is the same
    else:
        same = len({f.scale for _, f in ordered}) == 1
        scale = first.scale if same else 1.0
        blocks = [f.up_OR if same else f.up_OR * f.scale for _, f in ordered]
        down = torch.cat([f.down_RI for _, f in ordered])
        ranks = [f.rank for _, f in ordered]
        offsets = [sum(ranks[:i]) for i in range(len(ranks))]
    up = torch.zeros(rows, down.shape[0])
    for (part, _), block, offset in zip(ordered, blocks, offsets, strict=True):
        assert part.rows is not None
        if len(block) != part.rows[1] - part.rows[0]:
            raise ModelFileError(
                f"a LoRA of {len(block)} rows for {part.native}, in which its module has {part.rows[1] - part.rows[0]}: it was made for another model, or is damaged"
            )
        up[part.rows[0] : part.rows[1], offset : offset + block.shape[1]] = block
    return Factors(up_OR=up, down_RI=down, scale=scale)


def as_written(factors: Factors, layout: KeyLayout, dtype: torch.dtype) -> Written:
    """An adapter with the tensor names of a key format. Without alpha, the scale is multiplied into B."""
    if not layout.alpha:
        factors = replace(factors, up_OR=factors.up_OR * factors.scale, scale=1.0)
    return Written(factors=factors, dtype=dtype, names=KOHYA if layout.kohya else PEFT, alpha=layout.alpha)
