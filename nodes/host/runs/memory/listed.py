"""A run in ComfyUI's list of loaded models: what a prompt lacks on the device, ComfyUI asks its loaded models for, and so the run too.

The run's entry is a ModelPatcher over an empty module. It reports what the run can give back as loaded and nothing as its size, so that
ComfyUI, which asks first whoever has the most in RAM already, asks it last. Nothing of ComfyUI's is loaded or called for it.

ComfyUI's own thread goes through that list by number and without a lock. An entry is therefore added at the end, which moves no
other, and taken out only while no prompt runs or the thread is known to wait for a run.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from .giving import DeviceMemory, free_bytes

AGAIN_S = 0.5
"""How often an entry that is to go sees whether it may."""
LIVE: set["Listed"] = set()
"""ComfyUI's list holds entries weakly."""


class LoraLoomRun(nn.Module):
    """What the entry stands over; ComfyUI writes its name in its log."""


class Answers:
    """What a ModelPatcher answers for a run. No constructor: constructors and destructors of some versions call these methods."""

    memory: DeviceMemory | None = None
    is_unloaded: bool = False
    """ComfyUI is about to take its entry out of the list."""
    model: LoraLoomRun
    load_device: torch.device

    def is_dynamic(self) -> bool:
        return False

    def is_clone(self, other: object) -> bool:
        return other is self

    def model_size(self) -> int:
        return 0

    def loaded_size(self) -> int:
        return self.memory.held if self.memory is not None else 0

    def current_loaded_device(self) -> torch.device:
        return self.load_device

    def lowvram_patch_counter(self) -> int:
        return 0

    def model_patches_to(self, device: object) -> None:
        pass

    def model_dtype(self) -> None:
        return None

    def partially_load(self, *args: object, **options: object) -> int:
        return 0

    def partially_unload(self, *args: object, **options: object) -> int:
        return self.memory.ask() if self.memory is not None else 0

    def detach(self, unpatch_all: bool = True) -> LoraLoomRun:
        if unpatch_all and self.memory is not None:
            self.is_unloaded = True
            self.memory.ask()
        return self.model


@functools.cache
def _patcher_class() -> type[Any]:
    """Made when ComfyUI is there."""
    from comfy.model_patcher import ModelPatcher

    return type("RunPatcher", (Answers, ModelPatcher), {})


class Host(Protocol):
    """What is used of the registry of runs."""

    quiet: Callable[[], AbstractContextManager[bool]]

    @property
    def is_waited_for(self) -> bool:
        """Whether ComfyUI's thread waits for a run."""


class Listed:
    """The entry of one run. `device` is the one that ComfyUI loads models to."""

    def __init__(self, memory: DeviceMemory, device: torch.device, host: Host) -> None:
        self.memory, self._host, self._has_left = memory, host, False
        self._patcher = _patcher_class()(LoraLoomRun(), load_device=device, offload_device=torch.device("cpu"))
        self._patcher.memory = memory
        memory.on_taken, memory.on_end = self.enter, self.leave

    def _entries(self) -> list[Any]:
        from comfy.model_management import current_loaded_models

        return [entry for entry in tuple(current_loaded_models) if entry.model is self._patcher]

    def enter(self) -> None:
        """Be in the list: at first, and again after ComfyUI has unloaded all. Any thread."""
        from comfy.model_management import LoadedModel, cleanup_models, current_loaded_models

        if self._has_left or (self._entries() and not self._patcher.is_unloaded):
            return
        self._patcher.is_unloaded = False
        LIVE.add(self)
        entry: Any = LoadedModel(self._patcher)
        entry.currently_used = False  # or nodes that load "what is in use" again would load it
        entry.real_model = weakref.ref(self._patcher.model)
        entry.model_finalizer = weakref.finalize(self._patcher.model, cleanup_models)
        entry.model_finalizer.atexit = False
        current_loaded_models.append(entry)

    def leave(self) -> None:
        """Be in the list no more, as soon as that is safe; does not wait for it."""
        self._has_left = True
        self._patcher.memory = None
        self.memory.on_taken = self.memory.on_end = _nothing
        if self in LIVE and not self._could_leave():
            again = threading.Timer(AGAIN_S, self.leave)
            again.daemon = True
            again.start()

    def _could_leave(self) -> bool:
        from comfy.model_management import current_loaded_models

        with self._host.quiet() as nothing_runs:
            if not (nothing_runs or self._host.is_waited_for):
                return False
            for entry in self._entries():
                entry.model_finalizer.detach()  # it would go through the list in this thread
                current_loaded_models.pop(next(i for i, one in enumerate(current_loaded_models) if one is entry))
        LIVE.discard(self)
        return True


def _nothing() -> None:
    """What a run that has left does when it is told."""


def lend(memory: DeviceMemory, network: nn.Module, device: torch.device, host: Host) -> None:
    """Have a run asked for what the base of its network holds on the device, if that can be given back."""
    if memory.is_over:
        return
    if memory.watch(network):
        memory.room = functools.partial(free_bytes, device)
        listed = next((one for one in LIVE if one.memory is memory), None) or Listed(memory, device, host)
        listed.enter()
        if memory.is_over:  # it has ended meanwhile, and did not know of its entry
            listed.leave()


def is_run(model: Any) -> bool:
    """Whether a model of ComfyUI's list is such an entry."""
    return isinstance(model.model, LoraLoomRun)
