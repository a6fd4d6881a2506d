"""What is known of a loaded network beyond what its structure shows: its family's row, read under ComfyUI's names.

A row (`trainer/families/*.py`) names modules as diffusers does. `key_map` says which rows of which module of the original file
each of them is, and a loaded network has the original file's names; so a preset means the same weights on both sides. A
network that no row describes trains too: `trainer/lora/roles.py` finds its layers by their structure.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ....trainer.diffusion.denoiser import Targets
from ....trainer.diffusion.objectives import FlowMatching
from ....trainer.diffusion.timesteps import ResolutionShift
from ....trainer.families import all_families
from ....trainer.families.common.family import Family
from ....trainer.known_models.row import Told
from ....trainer.lora import roles
from ....trainer.types import Shapes
from ....trainer.weights.row_parts import RowPart, Rows

WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class LoadedFamily:
    """What training needs to know of a loaded network."""

    targets: Mapping[str, Targets]
    training_shift: float | ResolutionShift | None = None
    """Shift of the trained noise levels; None takes the shift that the model samples with."""
    conditions: Mapping[str, float] = field(default_factory=dict)
    """Values added to every conditioning while training, e.g. Flux's guidance."""
    blocks: tuple[str, ...] = ()
    """Class names of the blocks that gradient checkpointing recomputes."""
    parts: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)
    """{path of a fused Linear: {name of a part: its rows}}, whose parts presets name."""
    file_keys: Mapping[str, str] = field(default_factory=dict)
    """{path of such a part: its name in LoRA files}."""
    told: Told | None = None
    """The model's row in the table of known models."""


@dataclass(frozen=True)
class _Piece:
    """A module of a row within a module of the loaded network."""

    name: str
    """Its diffusers path."""
    rows: Rows
    whole: str
    """Path of the loaded module."""

    @property
    def path(self) -> str:
        """Its path as a part of the loaded module."""
        return f"{self.whole}.{self.name.rpartition('.')[2]}"


def of_class(class_name: str) -> list[Family]:
    """The families whose networks ComfyUI loads as this class of comfy.model_base: several for NextDiT's relatives."""
    return [one for one in all_families().values() if class_name in one.comfy.model_classes]


def takes_guidance(class_name: str) -> bool:
    """Whether networks of this class take a guidance value; a file of the class may lack the embedding of it and ignore it."""
    return any(variant.guidance_embedding for family in of_class(class_name) for variant in family.variants.values())


def described(class_name: str, network: nn.Module) -> LoadedFamily | None:
    """The row of a loaded network, or None if no family has this class, or the family's names do not fit this network."""
    families = of_class(class_name)
    if not families:
        return None
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    family, variant = next(((one, found) for one in families if (found := one.detect(shapes))), (families[0], None))
    pieces = _pieces(family, shapes, network)
    if variant is None or pieces is None:
        return None
    settings = family.variants[variant]
    presets = family.target_presets([piece.name for inside in pieces.values() for piece in inside])
    targets = {name: Targets(description=preset.description, paths=_paths(preset, pieces)) for name, preset in presets.items()}  # fmt: skip
    wanted = {path for preset in targets.values() for path in preset.paths or ()}
    fused = {
        whole: inside
        for whole, inside in pieces.items()
        if len(inside) > 1 and any(piece.path in wanted for piece in inside)
    }
    prefix = family.lora_layouts["native"].prefix
    return LoadedFamily(
        targets=targets,
        training_shift=settings.training_shift if isinstance(settings.objective, FlowMatching) else None,
        conditions={"guidance": 1.0} if takes_guidance(class_name) else {},
        blocks=family.comfy.block_classes,
        parts={
            whole: {piece.path.rpartition(".")[2]: piece.rows for piece in inside} for whole, inside in fused.items()
        },
        file_keys={piece.path: f"{prefix}{piece.name}" for inside in fused.values() for piece in inside},
    )


def _pieces(family: Family, shapes: Shapes, network: nn.Module) -> dict[str, list[_Piece]] | None:
    """Returns {path of a Linear or Conv2d: the row's modules in it, by their rows}; None unless every one has a name in the row."""
    try:
        keymap = family.key_map(shapes)
    except KeyError:  # a relative of the family that lacks a tensor by which the map counts
        return None
    layers = {path: part for path, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    layers = {path: part for path, part in layers.items() if not isinstance(part, RowPart)}
    found: dict[str, list[_Piece]] = defaultdict(list)
    for key, place in keymap.items():
        whole = place.native.removesuffix(WEIGHT)
        if key.endswith(WEIGHT) and whole in layers:
            rows = place.rows or (0, layers[whole].weight.shape[0])
            found[whole].append(_Piece(key.removesuffix(WEIGHT), rows, whole))
    if found.keys() != layers.keys():
        return None
    return {whole: sorted(inside, key=lambda piece: piece.rows) for whole, inside in found.items()}


def _paths(preset: Targets, pieces: Mapping[str, list[_Piece]]) -> frozenset[str]:
    """The paths of a preset. What the row names as several modules is adapted as several here too, so that both sides have the
    same parameters, under the same names in files."""
    meant = [(piece, len(inside)) for inside in pieces.values() for piece in inside if preset.hold(piece.name)]
    return frozenset(piece.path if count > 1 else piece.whole for piece, count in meant)


def joined(
    paths: Sequence[str],
    parts: Mapping[str, Mapping[str, Rows]],
    *,
    missing: Callable[[str], bool] = lambda part: False,
) -> list[str]:
    """The same weights with each fused Linear, whose parts are all among the paths, as one module: how earlier versions trained
    them. Parts of which `missing` is true need not be among the paths."""
    found = set(paths)
    for whole, rows in parts.items():
        inside = {f"{whole}.{name}" for name in rows}
        if inside & found and all(part in found or missing(part) for part in inside):
            found = found - inside | {whole}
    return sorted(found)


def told_by_structure(network: nn.Module) -> LoadedFamily:
    """Returns the settings of a network that no row describes."""
    return LoadedFamily(targets=roles.presets(network), blocks=repeated_blocks(network))


def repeated_blocks(module: nn.Module) -> tuple[str, ...]:
    """Names of the classes that stand more than once in a ModuleList: what a network is stacked of."""
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    names = [type(stack[0]).__name__ for stack in stacks if len({type(child) for child in stack}) == 1]
    return tuple(dict.fromkeys(name for name in names if name not in ("Linear", "Sequential", "FrozenLinear")))
