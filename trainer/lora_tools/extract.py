"""A LoRA out of two checkpoints: the difference of each weight, as few ranks as are wanted.

The singular values come from the smaller Gram matrix in float64 (Golub & Van Loan, 8.6): exact to 1e-8 of the largest,
far below fp32 rounding of the weights, with little more in memory than the difference itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..storage.tensor_file import TensorFile
from .factors import Factors, Written
from .merge_base import Places, WeightSlice
from .resize import Cut, Cuts, Keep

BLOCK = 1024
"""Rows or columns whose products are summed up at once."""


class Reader:
    """Tensors of the files of one checkpoint by their names without a prefix."""

    def __init__(self, files: Iterable[TensorFile], prefix: str) -> None:
        self.where = {
            key.removeprefix(prefix): (file, key) for file in files for key in file.layout if key.startswith(prefix)
        }

    def __call__(self, key: str) -> Tensor:
        file, name = self.where[key]
        return file.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: file.layout[name][1] for key, (file, name) in self.where.items()}


class Difference:
    """What a checkpoint has that another has not."""

    def __init__(self, read_old: Reader, read_new: Reader) -> None:
        self.read_old, self.read_new = read_old, read_new

    def __call__(self, *places: WeightSlice) -> Tensor:
        """new - old of a module's weight, fp32, its rows from one place or several."""
        ordered = sorted(places, key=lambda place: place.of_module or (0, 0))
        parts = [place.of(self.read_new(place.key)).float() - place.of(self.read_old(place.key)).float() for place in ordered]  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    modules: int
    text_encoder: int
    """Modules of text encoders among them."""
    same: int
    """Modules that are equal in both checkpoints."""
    ranks: tuple[int, int]
    kept: float
    """Share of the squared norm of these modules' difference that the LoRA holds."""
    worst: str
    outside: float
    """Share of the squared norm of the whole difference that lies in tensors a LoRA cannot hold (norms, biases)."""
    bytes: int

    def text(self) -> str:
        low, high = self.ranks
        return "\n".join(
            [
                f"{self.modules} modules ({self.text_encoder} of text encoders), rank {low} to {high}, {self.bytes:,} bytes; {self.same} are equal in both",
                f"{self.kept:.2%} of their difference's energy retained, least in {self.worst}",
                f"{self.outside:.2%} of the whole difference lies in biases, norms and the like, which are left out",
            ]
        )


@torch.no_grad()
def factorise(difference: Tensor, keep: Keep) -> tuple[Factors, Cut] | None:
    """The best LoRA for a difference of two weights (O, I) or (O, I, height, width); None if it is zero."""
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
    """matrix @ matrix' in float64, few columns at a time."""
    total = torch.zeros(len(matrix_RI), len(matrix_RI), dtype=torch.float64, device=matrix_RI.device)
    for part in torch.split(matrix_RI, BLOCK, dim=1):
        wide = part.double()
        total.addmm_(wide, wide.T)
    return total


def extract(differences: Iterable[tuple[str, Tensor]], keep: Keep, dtype: torch.dtype, names: tuple[str, str]) -> Cuts:
    """{module key: difference} to the modules of a LoRA; each difference is asked for once."""
    done = Cuts()
    for key, difference in differences:
        found = factorise(difference, keep)
        if found is None:
            done.zero.append(key)
        else:
            done.written[key], done.cuts[key] = Written(factors=found[0], dtype=dtype, names=names), found[1]
    return done


def outside_energy(keys: Iterable[str], inside: Places, difference: Difference) -> float:
    """Squared norm of the difference of all tensors that no module covers."""
    covered = {place.key for places in inside.values() for place in places}
    return sum(difference(WeightSlice(key)).double().square().sum().item() for key in keys if key not in covered)
