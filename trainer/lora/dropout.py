"""Dropout whose mask is a function of its place in the run."""

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeding import StepKey, generator, uniform


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (seed, step, micro-batch, module), so that recomputed activations get the same mask.

    Without a `draw` it is the identity.
    """

    purpose = "dropout"

    def __init__(self, probability: float, path: str) -> None:
        super().__init__()
        self.probability, self.path = probability, path
        self.draw: StepKey | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x with dropped elements set to 0 and the others divided by 1 - probability."""
        if self.draw is None:
            return x
        key = (self.purpose, self.draw.step, self.draw.micro_batch, self.path)
        source = generator(self.draw.seed, *key, device=x.device)
        keep = torch.rand(self.mask_shape(x), generator=source, device=x.device) >= self.probability
        return x * keep / (1 - self.probability)

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """Every element is drawn by itself."""
        return tuple(x.shape)


class RankDropout(SeededDropout):
    """Leaves out ranks of the hidden activations, (B, ..., rank) or (B, rank, H, W) of a convolution, for each sample by itself."""

    purpose = "rank dropout"

    def __init__(self, probability: float, path: str, dim: int) -> None:
        super().__init__(probability, path)
        self.dim = dim

    def mask_shape(self, x: Tensor) -> tuple[int, ...]:
        """One number per sample and rank."""
        return tuple(size if axis in (0, self.dim % x.ndim) else 1 for axis, size in enumerate(x.shape))


class NestedRanks(SeededDropout):
    """DyLoRA (arXiv 2210.07558): each forward pass uses the first ranks up to a number that is drawn, and trains the last unit of them.

    Any first units of the finished LoRA are then a LoRA of their own. Without a draw all ranks are used.
    """

    purpose = "nested ranks"

    def __init__(self, unit: int, path: str, rank: int) -> None:
        super().__init__(0.0, path)
        if rank % unit:
            raise ConfigError(
                f"network.dylora_unit = {unit}: {path} has rank {rank}, which it does not divide; use a divisor of it"
            )
        self.unit, self.count = unit, rank // unit

    def cut(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """The ranks of (r, I, ...) and (O, r, ...) that take part; those before the last unit are constants."""
        if self.draw is None:
            return down, up
        draw = uniform(self.draw.seed, self.purpose, self.draw.step, self.draw.micro_batch, self.path)
        first = int(draw * self.count) * self.unit
        last = first + self.unit
        return (
            torch.cat([down[:first].detach(), down[first:last]]),
            torch.cat([up[:, :first].detach(), up[:, first:last]], dim=1),
        )


def dropped_modules(paths: list[str], probability: float, draw: StepKey) -> set[str]:
    """The modules that are left out of a forward pass. One stays where all would go, so that there is a gradient."""
    draws = {path: uniform(draw.seed, "module dropout", draw.step, draw.micro_batch, path) for path in paths}
    return {path for path, value in draws.items() if value < probability} - {max(draws, key=lambda path: draws[path])}
