"""The role of every Linear of a network, found from its structure: attention, mlp or modulation in a block, or outside of the blocks.

A network for images is mostly a stack of equal blocks; what stands around the stack (embedders, the last layer, adapters of
the text) is small and sensitive and is not trained unless it is named. Inside a block

- modulation makes scales and shifts from the timestep. As many rows run through it whatever the size of the image and the length of
  the text, which `probe.py` sees. Where a network cannot be probed, it is recognised by its name below the block (modulation, adaLN,
  norm, …) or by standing behind an activation that begins a Sequential, as in every adaLN;
- an mlp is a Linear into another width together with the Linear back from it (gated ones have two ways in, or one of twice
  the width);
- everything else is attention. Three or more Linears into a width and one back are query, key, value and output, and so are
  a way in and one back that stand with two equal Linears besides, which are key and value.

What lies loose in a block whose attention is a module of its own is mlp. A Linear that holds query, key, value and the
mlp's way in at once, as in Flux's single blocks, counts as attention.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from ..diffusion.denoiser import Targets
from ..weights.row_parts import RowPart
from .per_module import is_wide
from .probe import Probe

Role = Literal["attention", "mlp", "modulation", "outside"]
BIG = 0.1
"""Share of all Linear weights from which on a stack of equal modules is what the network is made of."""
CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
MODULATION = re.compile(
    r"(\w+_)?mod|mod[A-Z_]\w*|\w*modulation\w*|(?i:ada_?ln\w*)|(\w+_)?norm\d*(_\w+)?|emb_layers"
)  # one name of a path as a whole


Kind = type[nn.Module] | frozenset[type[nn.Module]]
"""What makes modules equal: their class; for a list that is a block or a stage of blocks by itself, the classes in it."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A container of equal modules."""

    path: str
    kind: Kind
    members: tuple[str, ...]
    weights: int
    """Elements of the Linear weights inside."""


def roles(module: nn.Module, seen: Probe | None = None) -> dict[str, Role]:
    """Returns {path: role} of every Linear. A network without a stack of equal blocks counts as one block."""
    linears = _linears(module)
    found: dict[str, Role] = dict.fromkeys(linears, "outside")
    for block in block_paths(module) or [""]:
        inside = [path for path in linears if path.startswith(f"{block}." if block else "")]
        found |= _roles_in(module, block, inside, seen)
    return found


def convolutions(module: nn.Module) -> frozenset[str]:
    """Paths of the convolutions of a UNet: those in classes that stand in it several times, as its resnets and samplers do. The first
    and the last one, and what makes patches of a transformer's image, stand alone. A network whose only ones are of 1 x 1 is no UNet."""
    inside: dict[type[nn.Module], list[str]] = defaultdict(list)
    standing: Counter[type[nn.Module]] = Counter()
    for path, part in module.named_modules():
        standing[type(part)] += 1
        if isinstance(part, nn.Conv2d) and part.groups == 1:
            inside[_holder(module, path)].append(path)
    found = frozenset(path for kind, paths in inside.items() if standing[kind] > 1 for path in paths)
    return found if any(is_wide(module.get_submodule(path)) for path in found) else frozenset()


def _holder(module: nn.Module, path: str) -> type[nn.Module]:
    """The class of the nearest module above that is more than a container; containers made to measure are containers."""
    parent = path.rpartition(".")[0]
    while parent and isinstance(module.get_submodule(parent), CONTAINERS):
        parent = parent.rpartition(".")[0]
    return type(module.get_submodule(parent))


def presets(module: nn.Module, seen: Probe | None = None) -> dict[str, Targets]:
    """The target presets of a network that nobody has described, less the Linears that never get a gradient. `default` and `conv` also
    hold a UNet's convolutions."""
    told = roles(module, seen)
    alive = told.keys() - (seen.idle if seen else frozenset())

    def targets(description: str, *wanted: Role) -> Targets:
        return Targets(description=description, paths=frozenset(path for path in alive if told[path] in wanted))

    every = targets("every Linear in the network's blocks", "attention", "mlp", "modulation")
    wide = convolutions(module)
    conv = Targets(
        description="every Linear and convolution in the network's blocks", paths=(every.paths or frozenset()) | wide
    )
    more = {"conv": conv} if wide else {}
    return {
        "default": conv if wide else every,
        "attention": targets("attention in the network's blocks", "attention"),
        "attention+mlp": targets("attention and feed-forward in the network's blocks", "attention", "mlp"),
        "all": every,
        **more,
    }


def block_paths(module: nn.Module) -> list[str]:
    """Paths of the blocks that the network is made of, in its own order; none if there is no stack of equal modules.

    A stack counts from BIG of all Linear weights on. Stacks of one class that lie in different places, as in a UNet, count
    together.
    """
    total = sum(part.in_features * part.out_features for part in _linears(module).values())
    by_kind: dict[Kind, list[Stack]] = defaultdict(list)
    for stack in _stacks(module):
        by_kind[stack.kind].append(stack)
    big: list[Stack] = []
    for stacks in by_kind.values():
        if len({stack.path.rpartition(".")[0] for stack in stacks}) == 1:
            big += [stack for stack in stacks if stack.weights >= BIG * total]
        elif sum(stack.weights for stack in stacks) >= BIG * total:
            big += stacks
    outer = [stack for stack in big if not any(_is_inside(stack, other) for other in big)]
    chosen = {member for stack in outer for member in stack.members}
    return [path for path, _ in module.named_modules() if path in chosen]


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) and not isinstance(part, RowPart)
    }


def _stacks(module: nn.Module) -> list[Stack]:
    """Every container of equal modules that hold several Linears each."""
    found = []
    for path, part in module.named_modules():
        kinds = {_kind(child) for child in part.children()}
        kind = kinds.pop() if len(kinds) == 1 else None
        if not isinstance(part, CONTAINERS) or kind is None:
            continue
        members = {f"{path}.{name}" if path else name: child for name, child in part.named_children()}
        linears = [_linears(child).values() for child in members.values()]
        if any(_is_stage(child) for child in members.values()) or min(map(len, linears)) < 2:
            continue
        weights = sum(one.in_features * one.out_features for inner in linears for one in inner)
        found.append(Stack(path=path, kind=kind, members=tuple(members), weights=weights))
    return found


def _kind(module: nn.Module) -> Kind | None:
    """Returns None for a container of equal modules, which is not a block but holds some."""
    if not isinstance(module, CONTAINERS):
        return type(module)
    kinds = frozenset(type(child) for child in module.children())
    return kinds if len(kinds) > 1 and not any(issubclass(kind, nn.Linear) for kind in kinds) else None


def _is_stage(module: nn.Module) -> bool:
    """Whether its blocks are further inside: what it has besides stacks is convolutions, or a projection before and behind."""
    inner = [
        path
        for path, part in module.named_modules()
        if path and isinstance(part, CONTAINERS) and any(len(_linears(child)) > 1 for child in part.children())
    ]
    besides = [path for path in _linears(module) if not any(path.startswith(f"{stack}.") for stack in inner)]
    return bool(inner) and (len(besides) <= 2 or any(isinstance(part, nn.Conv2d) for part in module.modules()))


def _is_inside(stack: Stack, other: Stack) -> bool:
    return any(stack.path.startswith(f"{member}.") for member in other.members)


def _roles_in(module: nn.Module, block: str, paths: list[str], seen: Probe | None) -> dict[str, Role]:
    """Returns {path: role} of the Linears of one block."""
    is_modulation = seen.constant.__contains__ if seen else partial(_is_named_modulation, module, block)
    found: dict[str, Role] = {path: "modulation" for path in paths if is_modulation(path)}
    rest = [path for path in paths if path not in found]
    groups: dict[str, dict[str, nn.Linear]] = defaultdict(dict)
    for path in rest:
        groups[_group(path, block, rest)][path] = module.get_submodule(path)  # type: ignore[assignment]
    for group in groups.values():
        feed_forward = _feed_forward(group)
        found |= {path: "mlp" if len(group) == 1 or path in feed_forward else "attention" for path in group}
    if any(role == "attention" and path not in groups[block] for path, role in found.items()):
        found |= dict.fromkeys(groups[block], "mlp")
    return found


def _is_named_modulation(module: nn.Module, block: str, path: str) -> bool:
    """Whether its name in the block or what stands before it says that it makes modulation."""
    start = len(block) + 1 if block else 0
    return any(MODULATION.fullmatch(name) for name in path[start:].split(".")) or _behind_activation(module, path)


def _group(path: str, block: str, paths: list[str]) -> str:
    """The smallest module of the block that holds this Linear together with another one."""
    parent = path.rpartition(".")[0]
    while parent != block and sum(other.startswith(f"{parent}.") for other in paths) == 1:
        parent = parent.rpartition(".")[0]
    return parent


def _behind_activation(module: nn.Module, path: str) -> bool:
    """Whether a module above it is a Sequential that begins with an activation."""
    parent = path.rpartition(".")[0]
    while parent:
        part = module.get_submodule(parent)
        if isinstance(part, nn.Sequential) and type(part[0]).__module__ == "torch.nn.modules.activation":
            return True
        parent = parent.rpartition(".")[0]
    return False


def _feed_forward(group: Mapping[str, nn.Linear]) -> set[str]:
    """Those of Linears that stand together which are an mlp."""
    shapes = Counter(one.weight.shape for one in group.values())
    pairs: dict[frozenset[str], int] = {}
    for path, down in group.items():
        ups = [other for other, up in group.items() if other != path and _leads_into(up, down)]
        if down.in_features != down.out_features and shapes[down.weight.shape] == 1 and 0 < len(ups) < 3:
            pairs[frozenset([path, *ups])] = down.weight.numel()
    loose = [one for path, one in group.items() if not any(path in members for members in pairs)]
    if pairs and len(loose) == 2 and loose[0].weight.shape == loose[1].weight.shape:
        # The two are key and value; query and output are the narrowest pair.
        del pairs[min(pairs, key=lambda members: pairs[members])]
    return {path for members in pairs for path in members}


def _leads_into(up: nn.Linear, down: nn.Linear) -> bool:
    """Whether the output of `up`, or half of it (gated), is as wide as the input of `down`, and back."""
    gated = up.out_features == 2 * down.in_features and up.out_features > up.in_features
    return up.in_features == down.out_features and (up.out_features == down.in_features or gated)
