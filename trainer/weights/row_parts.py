"""Parts of a fused Linear as separate layers, so that an adapter can be put on some of its rows.

Some networks keep several projections in the rows of one matrix: Flux's single blocks hold query, key, value and the first
layer of the feed-forward in `linear1`. A part has no weight of its own; it reads the rows of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .changes import changes_of
from .frozen import FrozenLinear, frozen_linear, is_quantized_tensor, stored_weight
from .packing.row_scaled import RowScaled, brought

Rows = tuple[int, int]
"""First row and end."""


class FusedLinear(FrozenLinear):
    """A Linear with children that are its rows. It computes as one matrix until a child is changed or replaced by an adapted layer."""

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the dtype of `input`."""
        if self.is_whole:
            return super().forward(input)
        return torch.cat([part(input) for part in self.children()], dim=-1)

    @property
    def is_whole(self) -> bool:
        """Whether none of its parts computes in another way than its rows do."""
        return all(type(part) is RowPart and not changes_of(part) for part in self.children())


class RowPart(nn.Linear):
    """Some rows of a `FusedLinear` as a layer. Nothing is copied unless the weight is quantized and must be dequantized."""

    def __init__(self, whole: FusedLinear, rows: Rows) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, rows[1] - rows[0]
        self._whole = (whole,)  # in a tuple, so that the whole is not registered as a child of its own part
        self._rows = slice(*rows)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The rows (rows, in) of the weight, dequantized but not multiplied by the scale."""
        stored = self.stored()
        return stored.dequantize() if isinstance(stored, _QuantizedRows) else stored

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The rows of the bias (rows,)."""
        bias = self._whole[0].bias
        return None if bias is None else bias[self._rows]

    @property
    def scale(self) -> Tensor | None:
        """The factor of the stored weight in scaled fp8 files: one for all rows, or one for each row."""
        scale = self._whole[0].scale
        return scale if scale is None or scale.numel() == 1 else scale[self._rows]

    @property
    def is_exact(self) -> bool:
        """Whether a weight in 8 bits is unpacked although the device could multiply it as it is."""
        return self._whole[0].is_exact

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the dtype of `input`."""
        return frozen_linear(input, self.stored(), self.bias, self.scale, is_exact=self.is_exact)

    def stored(self) -> "Tensor | _QuantizedRows":
        """The rows of the weight as they are kept, or what brings them."""
        weight = stored_weight(self._whole[0])
        return _QuantizedRows(weight, self._rows) if is_quantized_tensor(weight) else weight[self._rows]


@dataclass(frozen=True)
class _QuantizedRows:
    """Rows of a quantized weight, which are dequantized when they are needed and not kept."""

    whole: Tensor
    rows: slice

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def home(self) -> Tensor:
        """The whole weight as it is kept."""
        home: Tensor = getattr(self.whole, "home", self.whole)
        return home

    def stored(self) -> RowScaled:
        """The rows on the device, of a weight that can be multiplied as it is."""
        return brought(self.whole).rows(self.rows)

    def dequantize(self) -> Tensor:
        return self.whole.dequantize()[self.rows]


def rows_of(linear: FusedLinear) -> list[tuple[RowPart, Rows]]:
    """The parts of a Linear that no adapter has replaced yet, each with its rows."""
    parts = [part for part in linear.children() if isinstance(part, RowPart)]
    return [(part, (part._rows.start, part._rows.stop)) for part in parts]


def split(linear: nn.Module, parts: Mapping[str, Rows]) -> None:
    """Give a frozen Linear its parts as children, by name and in the order of their rows.

    Raises ValueError for a layer that is not a FrozenLinear, or for parts that do not cover its rows one after another.
    """
    if not isinstance(linear, FrozenLinear):
        raise ValueError(f"a {type(linear).__name__} cannot be split into rows")
    ends = [0, *(stop for _, stop in parts.values())]
    if [start for start, _ in parts.values()] != ends[:-1] or ends[-1] != linear.out_features:
        raise ValueError(f"the parts {dict(parts)} do not cover {linear.out_features} rows one after another")
    linear.__class__ = FusedLinear
    assert isinstance(linear, FusedLinear)
    for name, rows in parts.items():
        linear.add_module(name, RowPart(linear, rows))
