"""Reducing the rank of a LoRA by SVD: the smallest singular values of each module's change are removed.

The methods are those of sd-scripts' resize_lora.py. The SVD is computed exactly by QR of both factors, so that the large
matrix up @ down is never formed.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, ModelFileError, did_you_mean, reads
from ..types import Progress
from .factors import Factors, Written, extended, new_dtype, open_lora, write_lora


def _ratio(values_R: Tensor, amount: float) -> int:
    return int((values_R > values_R[0] / amount).sum())


def _fro(values_R: Tensor, amount: float) -> int:
    return _first_at_least(values_R.square().cumsum(0), amount**2)


def _cumulative(values_R: Tensor, amount: float) -> int:
    return _first_at_least(values_R.cumsum(0), amount)


def _first_at_least(sums_R: Tensor, share: float) -> int:
    """Number of terms that are needed to reach a share of the whole sum."""
    return int((sums_R < share * sums_R[-1]).sum()) + 1


METHODS: dict[str, Callable[[Tensor, float], int]] = {
    "rank": lambda values_R, amount: len(values_R),
    "sv_ratio": _ratio,
    "sv_fro": _fro,
    "sv_cumulative": _cumulative,
}
"""{name: a function of (singular values (R,), largest first; amount) that returns the number of values to keep}."""


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which singular values are kept: at most `rank` (0: no limit), chosen by `method` with its parameter `amount`.

    rank keeps the largest ones; sv_ratio those above 1 / amount of the largest; sv_fro and sv_cumulative as few as hold the
    share `amount` of the Frobenius norm or of the sum. Raises ConfigError for values that do not fit together.
    """

    rank: int = 0
    method: str = "rank"
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method = {self.method!r}: {did_you_mean(self.method, list(METHODS))}")
        if self.amount and self.method == "rank":
            raise ConfigError(f"amount = {self.amount} needs a method: sv_fro, sv_ratio or sv_cumulative")
        if self.rank < 0 or (self.method == "rank" and self.rank == 0):
            raise ConfigError(f"rank = {self.rank}: use 1 or more, or a method (sv_fro and an amount of 0.9 is usual)")
        if self.method == "sv_ratio" and not self.amount > 1:
            raise ConfigError(f"amount = {self.amount}: sv_ratio needs a number above 1 (2 keeps values above half)")
        if self.method in ("sv_fro", "sv_cumulative") and not 0 < self.amount <= 1:
            raise ConfigError(f"amount = {self.amount}: {self.method} needs a share above 0, up to 1 (0.9 is usual)")

    def count(self, values_R: Tensor) -> int:
        """The number of values to keep of (R,), largest first: at least 1, and none that is zero up to rounding."""
        filled = int((values_R > values_R[0] * torch.finfo(torch.float32).eps).sum())
        return max(1, min(METHODS[self.method](values_R, self.amount), self.rank or len(values_R), filled))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The result of reducing one module: its rank before and after, and the share that is kept."""

    old: int
    new: int
    kept: float
    """Share of the squared Frobenius norm of its change that is kept."""
    energy: float
    """Squared Frobenius norm of its change before."""


@dataclass(frozen=True, kw_only=True)
class ResizeReport:
    """The report on reducing the rank of a LoRA."""

    cuts: dict[str, Cut]
    zero: tuple[str, ...] = ()
    """Modules that changed nothing and are left out."""
    bytes_before: int = 0
    bytes_after: int = 0
    worst: str = ""
    """Module that has lost the largest share."""

    @property
    def kept(self) -> float:
        """Share of the squared Frobenius norm of the whole change that is left."""
        total = sum(cut.energy for cut in self.cuts.values())
        return sum(cut.kept * cut.energy for cut in self.cuts.values()) / total if total else 1.0

    def text(self) -> str:
        ranks = [cut.new for cut in self.cuts.values()]
        lines = [
            f"{len(ranks)} modules, rank {min(ranks)} to {max(ranks)} (mean {sum(ranks) / len(ranks):.1f}); "
            f"{self.kept:.2%} of the change's energy is kept",
            f"least in {self.worst}: {self.cuts[self.worst].kept:.2%}",
            f"{self.bytes_before:,} bytes before, {self.bytes_after:,} after",
        ]
        if self.zero:
            lines.append(f"{len(self.zero)} modules without effect were left out, first {self.zero[0]}")
        return "\n".join(lines)


@torch.no_grad()
def cut(factors: Factors, keep: Keep) -> tuple[Factors, Cut] | None:
    """The best approximation of a module's change at a lower rank (Eckart-Young); None if the change is zero."""
    left_OR, values_R, right_RI = product_svd(factors.up_OR, factors.down_RI)
    energies_R = (values_R * factors.scale).square()
    if not energies_R.sum() > 0:
        return None
    count = keep.count(values_R)
    root = values_R[:count].sqrt()
    smaller = replace(
        factors, up_OR=(left_OR[:, :count] * root).float(), down_RI=(root[:, None] * right_RI[:count]).float()
    )
    total = energies_R.sum().item()
    return smaller, Cut(old=factors.rank, new=count, kept=energies_R[:count].sum().item() / total, energy=total)


def product_svd(up_OR: Tensor, down_RI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD (left (O, R), values (R,), right (R, I)) of up @ down in float64.

    By QR of both factors, only an R x R matrix has to be decomposed.
    """
    left_q, left_r = torch.linalg.qr(up_OR.double())
    right_q, right_r = torch.linalg.qr(down_RI.double().T)
    inner_left, values_R, inner_right = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return left_q @ inner_left, values_R, inner_right @ right_q.T


def cut_all(modules: Iterable[tuple[str, Written]], keep: Keep) -> "Cuts":
    """Reduce the rank of all modules. An iterator keeps one module in memory at a time."""
    done = Cuts()
    for key, module in modules:
        result = cut(module.factors, keep)
        if result is None:
            done.zero.append(key)
        else:
            done.written[key], done.cuts[key] = replace(module, factors=result[0]), result[1]
    return done


@dataclass
class Cuts:
    """The results of reducing the modules of a LoRA."""

    written: dict[str, Written] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    zero: list[str] = field(default_factory=list)
    """Modules whose change is zero, which are not written."""

    def report(self, source_bytes: int, target: Path) -> ResizeReport:
        """The report, once the file `target` is written."""
        return ResizeReport(
            cuts=self.cuts,
            zero=tuple(self.zero),
            bytes_before=source_bytes,
            bytes_after=target.stat().st_size,
            worst=min(self.cuts, key=lambda key: self.cuts[key].kept),
        )


@reads(lambda source, *_, **__: source)
def resize(
    source: Path,
    target: Path,
    keep: Keep,
    dtype: str = "auto",
    progress: Progress = lambda done, total: None,
) -> ResizeReport:
    """Write a LoRA at a lower rank. alpha changes with the rank, so that the scale is the same.

    Raises ModelFileError if the file is not a plain LoRA or has no effect, RunError if the target cannot be written.
    """
    lora = open_lora(source)

    def modules() -> Iterator[tuple[str, Written]]:
        for done, key in enumerate(sorted(lora.modules)):
            yield (
                key,
                Written(factors=lora.factors(key), dtype=new_dtype(dtype, lora.dtype(key)), names=lora.names(key)),
            )
            progress(done + 1, len(lora.modules))

    done = cut_all(modules(), keep)
    if not done.written:
        raise ModelFileError(f"{source} has no effect: all of its modules are zero")
    write_lora(target, done.written, extended(lora.metadata, done.written, "resize", vars(keep)))
    return done.report(source.stat().st_size, target)
