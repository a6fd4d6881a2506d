"""Target modules of an adapter: a preset of the family or a regular expression, resolved to exact paths."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..diffusion.denoiser import Targets
from ..errors import ConfigError, did_you_mean
from ..weights.row_parts import RowPart
from .kinds.norms import is_norm

MAX_PATTERN = 500
"""Characters of a pattern."""
LYCORIS = {
    "full": ("default",),
    "unet-only": ("full", "default"),
    "full-lin": ("default",),
    "attn-mlp": ("transformer", "default"),
    "unet-transformer-only": ("transformer", "default"),
    "attn-only": ("attention",),
}
"""{preset of LyCORIS: the presets here that train the same modules, the first of a family counts}. Its transformers train every Linear in the
blocks with all but the last."""
SEARCH_S = 1.0
"""Seconds in which a pattern must have gone through all module names."""


def resolve_targets(module: nn.Module, presets: Mapping[str, Targets], wanted: str, exclude: str = "") -> list[str]:
    """The paths of the Linear and Conv2d modules that `wanted` selects, sorted.

    `wanted` is the name of a preset, or "regex:" followed by a pattern that is searched for in the path. A part of a fused
    Linear is a target only where the whole Linear is not. Paths that match the pattern `exclude` are left out. Raises
    ConfigError, with the nearest names, if nothing remains.
    """
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    paths = sorted(layers)
    selected = _targets(presets, wanted, paths)
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
            f"network.target_modules = {_short(wanted)} matches none of the {len(paths)} Linear and Conv2d modules; {near}"
        )
    if exclude:
        left_out = matching("network.exclude_modules", exclude, {n for p in targets for n in _with_whole(p, layers)})
        kept = [path for path in targets if not left_out.intersection(_with_whole(path, layers))]
        if not kept:
            raise ConfigError(
                f"network.exclude_modules = {_short(exclude)} leaves none of the {len(targets)} target modules: make it narrower"
            )
        return kept
    return targets


def with_norms(module: nn.Module, paths: Sequence[str], exclude: str = "") -> list[str]:
    """These paths and those of all norms with a weight, sorted, without those that match the pattern `exclude`. Raises ConfigError for a
    network that has none."""
    norms = {path for path, part in module.named_modules() if is_norm(part)}
    norms -= matching("network.exclude_modules", exclude, norms) if exclude else set()
    if not norms:
        raise ConfigError(
            "network.train_norm = True: this network has no LayerNorm or GroupNorm with a weight; leave it out"
        )
    return sorted({*paths, *norms})


def _with_whole(path: str, layers: Mapping[str, nn.Module]) -> list[str]:
    """The path; for a part of a fused Linear also that of the whole, which leaves its parts out with it."""
    return [path, path.rpartition(".")[0]] if isinstance(layers[path], RowPart) else [path]


def has_modules(module: nn.Module, paths: Sequence[str]) -> bool:
    """Whether a network has all of these modules."""
    return {path for path, _ in module.named_modules()}.issuperset(paths)


def _targets(presets: Mapping[str, Targets], wanted: str, paths: Sequence[str]) -> Targets:
    if wanted.startswith("regex:"):
        found = matching("network.target_modules", wanted.removeprefix("regex:"), paths)
        return Targets(paths=frozenset(found))
    if wanted not in presets:
        wanted = next((name for name in LYCORIS.get(wanted, ()) if name in presets), wanted)
    if wanted not in presets:
        raise ConfigError(
            f"network.target_modules = {_short(wanted)}: {did_you_mean(wanted[:MAX_PATTERN], list(presets))}, or regex: and a pattern"
        )
    return presets[wanted]


def matching(name: str, pattern: str, paths: Iterable[str]) -> set[str]:
    """The paths in which a pattern of the user is found. A pattern may come with a workflow from anybody: its search is limited.

    Python's own engine cannot be interrupted, not even by another thread, so that it only says whether the pattern is one.
    Raises ConfigError.
    """
    import regex

    if len(pattern) > MAX_PATTERN:
        raise ConfigError(f"{name} = {_short(pattern)} has {len(pattern)} characters: use at most {MAX_PATTERN}")
    try:
        re.compile(pattern)
        compiled = regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{name} = {_short(pattern)} is not a regular expression: {error}") from error
    end = time.monotonic() + SEARCH_S
    try:
        return {path for path in paths if _found(compiled, path, end)}
    except (TimeoutError, MemoryError) as error:
        raise ConfigError(
            f"{name} = {_short(pattern)} takes longer than {SEARCH_S:g} s on the module names: use no repetition inside of a repetition"
        ) from error


def _found(compiled: Any, path: str, end: float) -> bool:
    """`concurrent` lets other threads go on meanwhile."""
    return compiled.search(path, timeout=max(end - time.monotonic(), 1e-3), concurrent=True) is not None


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
