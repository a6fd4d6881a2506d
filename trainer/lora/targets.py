"""Target modules of an adapter: a preset of the family or a regular expression, resolved to exact paths."""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from ..diffusion.denoiser import Targets
from ..errors import ConfigError, did_you_mean
from ..weights.row_parts import RowPart


def resolve_targets(module: nn.Module, presets: Mapping[str, Targets], wanted: str, exclude: str = "") -> list[str]:
    """The paths of the Linear and Conv2d modules that `wanted` selects, sorted.

    `wanted` is the name of a preset, or "regex:" followed by a pattern that is searched for in the path. A part of a fused
    Linear is a target only where the whole Linear is not. Paths that match the pattern `exclude` are left out. Raises
    ConfigError, with the nearest names, if nothing remains.
    """
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    paths = sorted(layers)
    selected = _targets(presets, wanted)
    matched = {path for path in paths if selected.hold(path)}
    targets = [
        path
        for path in sorted(matched)
        if not (isinstance(layers[path], RowPart) and path.rpartition(".")[0] in matched)
    ]
    if not targets:
        leaves = sorted({re.sub(r"\d+", "N", path) for path in paths})
        near = did_you_mean(wanted.removeprefix("regex:"), leaves)
        raise ConfigError(
            f"network.target_modules = {wanted!r} matches none of the {len(paths)} Linear and Conv2d modules; {near}"
        )
    if exclude:
        left_out = _compile("network.exclude_modules", exclude)
        kept = [path for path in targets if not any(left_out.search(name) for name in _with_whole(path, layers))]
        if not kept:
            raise ConfigError(
                f"network.exclude_modules = {exclude!r} leaves none of the {len(targets)} target modules: make it narrower"
            )
        return kept
    return targets


def _with_whole(path: str, layers: Mapping[str, nn.Module]) -> list[str]:
    """The path; for a part of a fused Linear also that of the whole, which leaves its parts out with it."""
    return [path, path.rpartition(".")[0]] if isinstance(layers[path], RowPart) else [path]


def has_modules(module: nn.Module, paths: Sequence[str]) -> bool:
    """Whether a network has all of these modules."""
    return {path for path, _ in module.named_modules()}.issuperset(paths)


def _targets(presets: Mapping[str, Targets], wanted: str) -> Targets:
    if wanted.startswith("regex:"):
        return Targets(_compile("network.target_modules", wanted.removeprefix("regex:")).pattern)
    if wanted not in presets:
        raise ConfigError(
            f"network.target_modules = {wanted!r}: {did_you_mean(wanted, list(presets))}, or regex: and a pattern"
        )
    return presets[wanted]


def _compile(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name} = {pattern!r} is not a regular expression: {error}") from error
