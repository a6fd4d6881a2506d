"""Merging LoRAs: the exact weighted sum of their changes, by concatenating their matrices along the rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import ConfigError, ModelFileError, reads
from ..types import Progress
from .factors import Factors, PlainLora, Written, extended, new_dtype, open_lora, write_lora
from .resize import Cuts, Keep, ResizeReport, cut_all


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The report on a merge."""

    modules: int
    shared: int
    """Number of modules that more than one of the LoRAs changes."""
    ranks: tuple[int, int]
    """Smallest and largest rank of a module."""
    rounding: float
    """Largest |written - exact| / |exact| of a module's change: the rounding error of the file's dtype."""
    bytes: int
    resized: ResizeReport | None = None
    """The report on reducing the rank afterwards."""

    def text(self) -> str:
        """The report as plain text."""
        low, high = self.ranks
        lines = [
            f"{self.modules} modules, {self.shared} of them in several files, rank {low} to {high}, {self.bytes:,} bytes",
            f"rounding to the file's dtype changes a module's change by at most {self.rounding:.1e}",
        ]
        return "\n".join(lines + ([self.resized.text()] if self.resized else []))


def add(parts: Sequence[tuple[Factors, float]], key: str) -> Factors:
    """The adapter whose change is the sum of weight * change. The matrices of several parts are concatenated along the rank.

    Raises ModelFileError if the parts have different sizes.
    """
    sizes = {(f.up_OR.shape[0], f.down_RI.shape[1]) for f, _ in parts}
    kernels = {f.kernel for f, _ in parts if f.kernel}  # a LoHa of a convolution does not tell its own
    if len(sizes) > 1 or len(kernels) > 1:
        described = " and ".join(
            sorted({str((f.up_OR.shape[0], *(f.kernel or (f.down_RI.shape[1],)))) for f, _ in parts})
        )
        raise ModelFileError(f"{key} has a weight of {described}: these LoRAs are for different models")
    if len(parts) == 1:
        factors, weight = parts[0]
        return replace(factors, scale=factors.scale * weight)
    return Factors(
        up_OR=torch.cat([f.up_OR * (f.scale * weight) for f, weight in parts], dim=1),
        down_RI=torch.cat([f.down_RI for f, _ in parts]),
        scale=1.0,
        kernel=next(iter(kernels), ()),
    )


@torch.no_grad()
@reads(lambda sources, *_, **__: ", ".join(str(path) for path, _ in sources))
def merge_loras(
    sources: Sequence[tuple[Path, float]],
    target: Path,
    keep: Keep | None = None,
    dtype: str = "auto",
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Write the weighted sum of LoRAs, given as (file, weight); `keep` reduces its rank afterwards.

    The dtype "auto" is the widest dtype of the files. Raises ConfigError without a weight other than 0, ModelFileError if a
    file is not a plain LoRA or the files do not fit together.
    """
    used = [(open_lora(path), weight) for path, weight in sources if weight]
    if not used:
        raise ConfigError("nothing to merge: give at least one LoRA with a weight other than 0")
    keys = sorted({key for lora, _ in used for key in lora.modules})

    def modules() -> Iterator[tuple[str, Written]]:
        for done, key in enumerate(keys):
            owners = [(lora, weight) for lora, weight in used if key in lora.modules]
            widest = max((lora.dtype(key) for lora, _ in owners), key=lambda kind: kind.itemsize)
            yield (
                key,
                Written(
                    factors=add(
                        [(lora.factors(key), weight) for lora, weight in owners],
                        f"{key} of {' and '.join(str(lora.path) for lora, _ in owners)}",
                    ),
                    dtype=new_dtype(dtype, widest),
                    names=owners[0][0].names(key),
                ),
            )
            progress(done + 1, len(keys))

    cuts = cut_all(modules(), keep) if keep else None
    written = cuts.written if cuts else dict(modules())
    write_lora(target, written, _metadata(used, written, keep))
    return _report(used, written, cuts, target)


def _metadata(
    used: Sequence[tuple[PlainLora, float]], written: Mapping[str, Written], keep: Keep | None
) -> dict[str, str]:
    """The metadata of the first file, with an entry about the merged files."""
    facts = {
        "files": [lora.path.name for lora, _ in used],
        "weights": [weight for _, weight in used],
        "keep": vars(keep) if keep else None,
    }
    return extended(used[0][0].metadata, written, "merge", facts)


def _report(
    used: Sequence[tuple[PlainLora, float]], written: Mapping[str, Written], cuts: Cuts | None, target: Path
) -> MergeReport:
    ranks = [module.factors.rank for module in written.values()]
    before = sum(lora.path.stat().st_size for lora, _ in used)
    return MergeReport(
        modules=len(written),
        shared=sum(sum(key in lora.modules for lora, _ in used) > 1 for key in written),
        ranks=(min(ranks), max(ranks)),
        rounding=max(rounding(module) for module in written.values()),
        bytes=target.stat().st_size,
        resized=cuts.report(before, target) if cuts else None,
    )


def rounding(module: Written) -> float:
    """Returns |stored - exact| / |exact| of a module's change, computed from its matrices alone."""
    exact = module.factors
    if module.dtype == torch.float32 or not (size := exact.energy()):
        return 0.0
    up, down = (tensor.to(module.dtype).float() for tensor in (exact.up_OR, exact.down_RI))
    difference = replace(exact, up_OR=torch.cat([up, -exact.up_OR], dim=1), down_RI=torch.cat([down, exact.down_RI]))
    return float((max(difference.energy(), 0.0) / size) ** 0.5)
