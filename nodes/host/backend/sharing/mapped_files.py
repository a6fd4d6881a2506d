"""The files that ComfyUI has mapped the weights of a MODEL from: dynamic VRAM keeps them so, and training reads them there."""

import itertools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .....trainer.storage.leases import Lease
from .....trainer.storage.mapped_files import State, asked_for, refuse_change, state_of
from .....trainer.weights.arena import homes_of
from .share_storage import parts

MAP = "_comfy_tensor_mmap_refs"
"""What keeps the map alive, as an attribute of a storage: (the map, its bytes)."""
SLICE = "_comfy_tensor_file_slice"
"""Where a tensor lies in the file: `file_ref` is a descriptor on POSIX, on Windows a handle."""


class HostFiles:
    """What the files were like when the run first used them. ComfyUI's copy of the model may change, and its files with it.

    While the run lives, Linux lets who would write to one of them wait (`trainer/storage/leases.py`); every pass through the network
    looks first whether somebody does.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = weakref.ref(network)
        self._states: weakref.WeakKeyDictionary[Any, State] = weakref.WeakKeyDictionary()
        self._leases: weakref.WeakKeyDictionary[Any, Lease] = weakref.WeakKeyDictionary()
        self.check()
        network.register_forward_pre_hook(lambda *_: self.check_leases())

    def check_leases(self) -> None:
        """Raise ModelFileError if another program waits to write to a file. Costs microseconds."""
        for lease in list(self._leases.values()):
            if lease.is_asked_for:
                raise asked_for(lease.name)

    @torch.inference_mode(False)
    def check(self) -> None:
        """Raise ModelFileError for a file that was written to since the run began to use it."""
        if os.name == "nt":  # Windows does not let anybody shorten a file that is mapped
            return
        self.check_leases()
        for whole, descriptor in self._maps():
            try:
                now = state_of(descriptor)
            except OSError:
                continue  # ComfyUI has closed it
            if whole not in self._leases:
                self._leases[whole] = Lease(Path(f"/proc/self/fd/{descriptor}"), _name(descriptor))
            refuse_change(_name(descriptor), self._states.setdefault(whole, now), now)

    def _maps(self) -> Iterator[tuple[Any, int]]:
        """Each map with the descriptor of its file."""
        network, seen = self._network(), set()
        for tensor in _tensors(network) if network is not None else ():
            for part in parts(tensor):
                storage = part.untyped_storage()
                whole, piece = getattr(storage, MAP, (None,))[0], getattr(storage, SLICE, None)
                if piece is not None and whole is not None and id(whole) not in seen:
                    seen.add(id(whole))
                    yield whole, piece.file_ref


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    homes = itertools.chain.from_iterable(homes_of(part).values() for part in network.modules())
    return itertools.chain(network.parameters(), network.buffers(), homes)


def _name(descriptor: int) -> str:
    """The path of an open file where the system tells it."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return "the file of the MODEL"
