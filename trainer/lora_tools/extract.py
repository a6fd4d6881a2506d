"""Extracting a LoRA from two checkpoints: the difference of each weight, approximated at a lower rank.

The singular values are computed from the smaller Gram matrix in float64 (Golub & Van Loan, section 8.6). They are exact to
1e-8 of the largest, far below the fp32 rounding of the weights, and need little more memory than the difference itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..storage.tensor_file import TensorFile
from .factors import Factors, Written
from .merge_base import WeightSlice, WeightSlices
from .resize import Cut, Cuts, Keep

BLOCK = 1024
"""Number of columns whose products are summed up at a time."""


class Reader:
    """The tensors of a checkpoint's files by their keys without a prefix."""

    def __init__(self, files: Iterable[TensorFile], prefix: str) -> None:
        self.files = {
            key.removeprefix(prefix): (file, key) for file in files for key in file.layout if key.startswith(prefix)
        }

    def __call__(self, key: str) -> Tensor:
        file, name = self.files[key]
        return file.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns {key: shape}, from the headers."""
        return {key: file.layout[name][1] for key, (file, name) in self.files.items()}


class Difference:
    """The difference of the weights of two checkpoints."""

    def __init__(self, read_old: Reader, read_new: Reader) -> None:
        self.read_old, self.read_new = read_old, read_new

    def __call__(self, *slices: WeightSlice) -> Tensor:
        """new - old of a module's weight in fp32; its rows are in one slice or several."""
        ordered = sorted(slices, key=lambda piece: piece.of_module or (0, 0))
        parts = [
            piece.of(self.read_new(piece.key)).float() - piece.of(self.read_old(piece.key)).float() for piece in ordered
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """The report on an extraction."""

    modules: int
    text_encoder: int
    """Number of modules of text encoders among them."""
    same: int
    """Number of modules that are equal in both checkpoints."""
    ranks: tuple[int, int]
    """Smallest and largest."""
    kept: float
    """Share of the squared norm of these modules' difference that the LoRA holds."""
    worst: str
    """The module with the smallest such share."""
    outside: float
    """Share of the squared norm of the whole difference that lies in tensors a LoRA cannot hold (norms, biases)."""
    bytes: int

    def text(self) -> str:
        """The report in three lines."""
        low, high = self.ranks
        return "\n".join(
            [
                f"{self.modules} modules ({self.text_encoder} of text encoders), rank {low} to {high}, {self.bytes:,} bytes; {self.same} are equal in both",
                f"{self.kept:.2%} of the difference's energy is kept, least in {self.worst}",
                f"{self.outside:.2%} of the whole difference lies in biases, norms and the like, which are left out",
            ]
        )


@torch.no_grad()
def factorise(difference: Tensor, keep: Keep) -> tuple[Factors, Cut] | None:
    """The best low-rank approximation of a difference of two weights (O, I) or (O, I, height, width); None if it is zero."""
    flat_OI = difference.flatten(1).float()
    tall = flat_OI.shape[0] > flat_OI.shape[1]
    squares, vectors = torch.linalg.eigh(_gram(flat_OI.T if tall else flat_OI))
    squares_R, vectors_R = squares.flip(0).clamp_min(0), vectors.flip(1)
    if not squares_R[0] > 0:
        return None
    values_R = squares_R.sqrt()
    count = keep.count(values_R)
    root, basis = values_R[:count].sqrt().float(), vectors_R[:, :count].float()
    if tall:
        up_OR, down_RI = flat_OI @ basis / root, root[:, None] * basis.T
    else:
        up_OR, down_RI = basis * root, basis.T @ flat_OI / root[:, None]
    kernel = tuple(difference.shape[1:]) if difference.ndim > 2 else ()
    factors = Factors(up_OR=up_OR, down_RI=down_RI, scale=1.0, kernel=kernel)
    total = squares_R.sum().item()
    kept = squares_R[:count].sum().item() / total
    return factors, Cut(old=len(values_R), new=count, kept=kept, energy=total)


def _gram(matrix_RI: Tensor) -> Tensor:
    """matrix @ matrix.T (R, R) in float64, computed a few columns at a time."""
    total = torch.zeros(len(matrix_RI), len(matrix_RI), dtype=torch.float64, device=matrix_RI.device)
    for part in torch.split(matrix_RI, BLOCK, dim=1):
        wide = part.double()
        total.addmm_(wide, wide.T)
    return total


def extract(differences: Iterable[tuple[str, Tensor]], keep: Keep, dtype: torch.dtype, names: tuple[str, str]) -> Cuts:
    """The modules of a LoRA from (module key, difference). An iterator keeps one difference in memory at a time.

    `names` are the suffixes of (A, B) in the file.
    """
    done = Cuts()
    for key, difference in differences:
        result = factorise(difference, keep)
        if result is None:
            done.zero.append(key)
        else:
            done.written[key], done.cuts[key] = Written(factors=result[0], dtype=dtype, names=names), result[1]
    return done


def outside_energy(keys: Iterable[str], inside: WeightSlices, difference: Difference) -> float:
    """Squared Frobenius norm of the difference of all tensors in which no module of `inside` lies."""
    covered = {piece.key for slices in inside.values() for piece in slices}
    return sum(difference(WeightSlice(key)).double().square().sum().item() for key in keys if key not in covered)
