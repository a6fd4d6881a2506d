"""The layers of a base model by name, as target modules name them: what `lora-loom inspect BASE` prints."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..diffusion.denoiser import Targets

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers that have the same name but for their numbers."""

    name: str
    """The path with N for its first number, that of the block."""
    count: int
    blocks: str
    """The first and the last N, "0-23"; "" for a path without a number."""
    shape: tuple[int, ...]
    """Of the weight; of the first one where they differ."""
    presets: tuple[str, ...]
    """Presets of `network.target_modules` that train them, all or some of them."""


def listed_layers(module: nn.Module, presets: Mapping[str, Targets]) -> list[Layers]:
    """The Linear and Conv2d layers of a network, which may be without weights, in its order."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            found.setdefault(NUMBER.sub("N", path, count=1), []).append((path, tuple(part.weight.shape)))
    return [
        Layers(
            name=name,
            count=len(same),
            blocks=_range([path for path, _ in same]),
            shape=same[0][1],
            presets=tuple(one for one, targets in presets.items() if any(targets.hold(path) for path, _ in same)),
        )
        for name, same in found.items()
    ]


def _range(paths: list[str]) -> str:
    numbers = sorted({int(match[0]) for path in paths if (match := NUMBER.search(path))})
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def layers_table(title: str, layers: list[Layers], presets: Mapping[str, Targets]) -> str:
    """The layers as plain text, under what can be named."""
    modules = sum(one.count for one in layers)
    lines = [
        f"{title}: {modules} Linear and Conv2d layers",
        'network.target_modules takes a preset, or "regex:" and a pattern of the names below (N is the number of the block, such as 0-3); exclude_modules, module_ranks and the like take such patterns, too',
        "",
        *(["presets:"] if presets else []),
        *(f"  {name}: {targets.description}" for name, targets in presets.items()),
        *([""] if presets else []),
    ]
    width = max((len(one.name) for one in layers), default=0)
    for one in layers:
        shape, where = " x ".join(map(str, one.shape)), f"N {one.blocks}" if one.blocks else ""
        lines.append(
            f"  {one.name:<{width}}  {one.count:4}  {where:<8}  {shape:<14}  {', '.join(one.presets)}".rstrip()
        )
    return "\n".join(lines)
