"""One copy of the base, always: a run's weights lie over the copy of the model that ComfyUI holds now.

ComfyUI drops a model whose loader is not in the current prompt and reads the file again for the next one that needs it, or
moves it between devices. A run that kept the storages it began with would then be a second copy. So at step boundaries, while
no prompt runs, a run compares the copy that ComfyUI holds with its own, bit for bit, and lays its tensors over that one.

Nothing of ComfyUI is called here: dictionaries and attributes are read, so that the training thread may do it.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .....trainer.weights.arena import homes_of
from .....trainer.weights.bits import same_bits
from .....trainer.weights.streaming import stream_of
from ...comfy_types import ModelPatcher
from ..denoiser import is_plain
from .share_storage import parts

NETWORK = "diffusion_model"
"""Attribute of a MODEL's network, and prefix of its keys. The module of a CLIP has no such attribute and no prefix."""
Place = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Where the elements of a tensor lie: two tensors of one place are the same numbers."""


@dataclass(frozen=True)
class Weight:
    """A tensor of ComfyUI's network, before any patch."""

    tensor: Tensor
    is_saved: bool
    """Part of the state dict. Others are computed from the configuration, and may be caches."""


def original_weights_unlocked(patcher: ModelPatcher) -> dict[str, Weight]:
    """Returns {name: weight before any patch} of a MODEL, without the effects that `get_key_patches` has (it ejects injections).

    To be read while no prompt runs. `backup` and `hook_backup` are shared by all clones of a network, and not in every
    version.
    """
    backup: Mapping[str, Any] = getattr(patcher, "backup", {})
    hooked: Mapping[str, Any] = getattr(patcher, "hook_backup", {})
    found = {}
    prefix = NETWORK if hasattr(patcher.model, NETWORK) else ""
    for path, module in network_of(patcher).named_modules(prefix=prefix):
        for name, value, is_saved in _tensors(module):
            key = f"{path}.{name}" if path else name
            found[key] = Weight(_original(value, hooked.get(key), backup.get(key)), is_saved)
    return found


def network_of(patcher: ModelPatcher) -> nn.Module:
    """The module that a patcher is for: of a MODEL its network, of a CLIP the whole."""
    whole: Any = patcher.model
    network: nn.Module = getattr(whole, NETWORK, whole)
    return network


def _original(now: Tensor, hooked: Any, backup: Any) -> Tensor:
    """ComfyUI keeps (weight, device) of what hooks have changed, and a tuple with `weight` of what a LoRA has changed."""
    if hooked is not None:
        return hooked[0]
    return now if backup is None else backup.weight


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            yield name, parameter, True
    for name, buffer in list(module._buffers.items()):
        if buffer is not None:
            yield name, buffer, name not in module._non_persistent_buffers_set
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor):
            yield name, value, False
    yield from ((name, home, True) for name, home in homes_of(module).items())


def _place(tensor: Tensor) -> Place:
    at = tensor.untyped_storage().data_ptr()
    return at, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


class SharedBase:
    """A run's base and the MODEL whose storages it shares.

    `loaded` gives the MODELs that ComfyUI has loaded, the latest first. Make it in the node, before an adapter is injected.
    """

    def __init__(
        self, shadow: nn.Module, patcher: ModelPatcher, loaded: Callable[[], Sequence[ModelPatcher]] = lambda: ()
    ) -> None:
        self._patcher = patcher
        self._loaded = loaded
        self._object_patches = dict(getattr(patcher, "object_patches", {}))
        self._patches_uuid = getattr(patcher, "patches_uuid", None)
        self._patches = {key: list(chain) for key, chain in patcher.patches.items()}
        self._options = patcher.model_options
        self._offered: Callable[[], ModelPatcher | None] = lambda: None
        self._others: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        """Networks of the same class that hold other weights."""
        self.retired: list[ModelPatcher] = []
        """MODELs that are used no more. Whoever clears the list may destroy networks."""
        self._shared = _shared_parts(shadow, original_weights_unlocked(patcher))
        self._is_streamed = stream_of(shadow) is not None
        """What a streamed base shares stays where it is, so that may be on any device."""

    def model(self) -> ModelPatcher:
        """The MODEL of the run: its network as ComfyUI holds it now, sampled and patched as the MODEL that the run was given."""
        made: Any = self._patcher.clone()
        if self._patches:
            made.patches = {key: list(chain) for key, chain in self._patches.items()}
            made.patches_uuid = self._patches_uuid
        made.object_patches = dict(self._object_patches)
        made.model_options = {
            **self._options,
            "transformer_options": dict(self._options.get("transformer_options", {})),
        }
        return made

    def offer(self, patcher: ModelPatcher) -> None:
        """Tell of a MODEL that a node was given, which ComfyUI holds without having loaded it."""
        self._offered = weakref.ref(patcher)

    def follow(self) -> str:
        """Share the storages of the copy that ComfyUI holds now. Only while no prompt runs and no graph of autograd is alive.

        Returns what was done, in words; "" for nothing.
        """
        for candidate in self._candidates():
            network = network_of(candidate)
            if network is network_of(self._patcher):
                return self._follow_moves(candidate)
            if network not in self._others and (done := self._adopt(candidate)):
                return done
        return ""

    def _candidates(self) -> Iterator[ModelPatcher]:
        """Plain MODELs of the class of ours, in the order they are to be tried."""
        offered, self._offered = self._offered(), lambda: None
        for patcher in (offered, *self._loaded()):
            if patcher is None or type(patcher.model) is not type(self._patcher.model):
                continue
            root = _root(patcher)
            if is_plain(root):
                yield root

    def _adopt(self, candidate: ModelPatcher) -> str:
        """Change over to another copy, if each of its tensors has the bits of ours."""
        ours, theirs = original_weights_unlocked(self._patcher), original_weights_unlocked(candidate)
        saved = {key for key, weight in ours.items() if weight.is_saved}
        if (
            saved != {key for key, weight in theirs.items() if weight.is_saved}
            or not self._shared.keys() <= theirs.keys()
        ):
            return ""
        if not all(self._may_lie_at(targets[0], parts(theirs[key].tensor)) for key, targets in self._shared.items()):
            return ""  # loaded in part: a base that is not streamed cannot follow it
        for key in saved:
            mine = self._shared[key][0] if key in self._shared else parts(ours[key].tensor)
            if not _same(mine, parts(theirs[key].tensor)):
                self._others.add(network_of(candidate))
                return ""
        moved = self._lay_over({key: weight for key, weight in theirs.items() if key in self._shared})
        self.retired.append(self._patcher)
        self._patcher = candidate
        return f"ComfyUI has loaded the model again: training shares that copy now ({moved:,} bytes)"

    def _follow_moves(self, candidate: ModelPatcher) -> str:
        """The network is the same, but its tensors may have been moved to other storages."""
        weights = original_weights_unlocked(candidate)
        moved = {
            key: weights[key]
            for key, targets in self._shared.items()
            if key in weights and _places(targets[0]) != _places(parts(weights[key].tensor))
        }
        if not all(self._fits(key, weight) for key, weight in moved.items() if weight.is_saved):
            return ""
        done = self._lay_over(moved)
        return f"ComfyUI has moved the model: training shares it where it lies now ({done:,} bytes)" if done else ""

    def _may_lie_at(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
        return self._is_streamed or {tensor.device for tensor in ours} == {tensor.device for tensor in theirs}

    def _fits(self, key: str, weight: Weight) -> bool:
        ours, theirs = self._shared[key][0], parts(weight.tensor)
        return self._may_lie_at(ours, theirs) and _same(ours, theirs)

    @torch.no_grad()
    def _lay_over(self, weights: Mapping[str, Weight]) -> int:
        """Every tensor of the run over these storages; returns the bytes. Tensors that are not weights are shared only where they are equal."""
        count = 0
        for key, weight in weights.items():
            sources = parts(weight.tensor)
            for targets in self._shared[key]:
                if not weight.is_saved and not (self._may_lie_at(targets, sources) and _same(targets, sources)):
                    continue
                for target, source in zip(targets, sources, strict=True):
                    # Not `target.data.set_`, which changes a passing alias only.
                    target.set_(source.untyped_storage(), source.storage_offset(), source.shape, source.stride())
                    count += source.numel() * source.element_size()
        return count


def _shared_parts(shadow: nn.Module, weights: Mapping[str, Weight]) -> dict[str, list[list[Tensor]]]:
    """Returns {name of a weight: the run's tensors over its storage, each as its plain parts}."""
    mine: dict[tuple[Place, ...], list[list[Tensor]]] = {}
    for module in shadow.modules():
        for _, tensor, _ in _tensors(module):
            mine.setdefault(_places(parts(tensor)), []).append(parts(tensor))
    found = {key: mine.get(_places(parts(weight.tensor)), []) for key, weight in weights.items()}
    return {key: tensors for key, tensors in found.items() if tensors and weights[key].tensor.numel()}


def _places(tensors: Sequence[Tensor]) -> tuple[Place, ...]:
    return tuple(_place(tensor) for tensor in tensors)


def _same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Equal in shapes, dtypes and every bit."""
    return len(ours) == len(theirs) and all(map(same_bits, ours, theirs))


def loaded_models() -> list[ModelPatcher]:
    """The MODELs that ComfyUI has loaded, the latest first. Its list holds them weakly, and may change at any moment."""
    from comfy.model_management import current_loaded_models

    models = [entry.model for entry in tuple(current_loaded_models)]
    return [model for model in models if model is not None]


def _root(patcher: ModelPatcher) -> ModelPatcher:
    """What a loader gave, of which this MODEL is a clone of a clone."""
    while (parent := getattr(patcher, "parent", None)) is not None and parent.model is patcher.model:
        patcher = parent
    return patcher
