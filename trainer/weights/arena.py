"""Device memory for a frozen base: how much of it is held, the most there ever was, and a limit that is kept."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
        return torch.empty(size, dtype=torch.uint8, device=self.device)
