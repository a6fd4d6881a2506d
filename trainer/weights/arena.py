"""Device memory for a frozen base: how much of it is held, the most there ever was, and a limit that is kept; which weights were copied
there from where they are kept, and can be given back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

HOMES = "homes"


@dataclass
class Arena:
    """Counts the bytes of the base on its device. Weights that stay are counted by `hold`, buffers by `buffer`."""

    device: torch.device
    limit: int | None = None
    """Bytes. More raises torch.cuda.OutOfMemoryError, as CUDA would."""
    live: int = 0
    peak: int = 0

    def hold(self, size: int) -> None:
        """Count bytes that are held from now on."""
        if self.limit is not None and self.live + size > self.limit:
            raise torch.cuda.OutOfMemoryError(
                f"the base would hold {self.live + size:,} bytes on {self.device}, and may hold {self.limit:,}"
            )
        self.live += size
        self.peak = max(self.peak, self.live)

    def release(self, size: int) -> None:
        self.live -= size

    def buffer(self, size: int) -> Tensor:
        """Bytes on the device, (size,) uint8, counted until `release`."""
        self.hold(size)
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.device)
        except torch.cuda.OutOfMemoryError:
            self.release(size)
            raise


@dataclass(eq=False)
class Copies:
    """Blocks whose weights were copied to the device from where they are kept, their homes. `place` makes such a copy of a layer's weight."""

    arena: Arena
    place: Callable[[nn.Module], None]
    _blocks: list[tuple[int, Sequence[nn.Module]]] = field(default_factory=list)
    """(bytes, layers)."""

    def add(self, size: int, layers: Sequence[nn.Module], homes: Sequence[Any]) -> None:
        """A block that was copied, and is counted in the arena. One that lies on the device anyway has no copy."""
        if all(layer._parameters["weight"] is not home for layer, home in zip(layers, homes, strict=True)):
            self._blocks.append((size, layers))
            for layer, home in zip(layers, homes, strict=True):
                vars(layer)[HOMES] = {"weight": home}

    @property
    def held(self) -> int:
        """Bytes of the copies that there are now."""
        return sum(size for size, layers in self._blocks if not _is_home(layers[0]))

    def rest(self) -> None:
        """Put what is kept in the place of every copy."""
        for size, layers in self._blocks:
            if not _is_home(layers[0]):
                self._put_back(size, layers)

    def wake(self) -> None:
        """Copy again what was given back. Raises torch.cuda.OutOfMemoryError, and then no copy is left."""
        try:
            for size, layers in self._blocks:
                if _is_home(layers[0]):
                    self.arena.hold(size)
                    self._copy(size, layers)
        except torch.cuda.OutOfMemoryError:
            self.rest()
            raise

    def _copy(self, size: int, layers: Sequence[nn.Module]) -> None:
        try:
            for layer in layers:
                self.place(layer)
        except torch.cuda.OutOfMemoryError:
            self._put_back(size, layers)
            raise

    def _put_back(self, size: int, layers: Sequence[nn.Module]) -> None:
        self.arena.release(size)
        for layer in layers:
            layer._parameters["weight"] = homes_of(layer)["weight"]


def homes_of(part: nn.Module) -> dict[str, nn.Parameter]:
    """Returns {name: what a weight of this module was copied to the device from}."""
    homes: dict[str, nn.Parameter] = vars(part).get(HOMES, {})
    return homes


def _is_home(layer: nn.Module) -> bool:
    """Whether its weight lies where it is kept."""
    return layer._parameters["weight"] is homes_of(layer)["weight"]
