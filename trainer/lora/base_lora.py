"""Base LoRAs: frozen LoRAs under the one that is trained. Their low-rank paths are added in the layers' forward.

One of use "always" belongs to the base: it is computed in training, samples and sweeps, and has to be loaded together with the
file that is trained on it. One of use "training" takes a distillation back for as long as training lasts (a de-distillation
adapter, "assistant LoRA"): with W distilled and W + D not, L is trained on W + D and used on W. Samples and sweeps run
without D, and the file holds L alone. D stays live instead of being merged and subtracted again, which is exact up to
rounding only and wrong for quantized weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelFileError
from ..types import Record
from ..weights.changes import FrozenChange, Switch, add_low_rank, lay
from ..weights.frozen import frozen_conv2d, frozen_linear
from ..weights.row_parts import FusedLinear, rows_of
from ..weights.streaming import device_of
from .host_formula import BIAS, changed_shape, low_rank_change, needs_base

Use = Literal["training", "always"]


@dataclass(frozen=True, kw_only=True)
class BaseLoraIdentity:
    """Which LoRA, at which strength, and when it is computed."""

    file: str
    """Name of the file; "" for a LoRA that a host had laid over the model, of which it keeps no name."""
    digest: str
    """Of its tensors."""
    strength: float
    use: Use
    on_clip: bool = False
    """Whether it is computed in a host's CLIP, not in its MODEL."""

    @property
    def name(self) -> str:
        return self.file or f"the LoRA that was loaded into the {'CLIP' if self.on_clip else 'MODEL'}"

    def text(self) -> str:
        """For the log."""
        if self.use == "training":
            return f"base LoRA {self.name} at {self.strength:g} while training only: samples and sweeps run without it"
        where = " in the text encoders" if self.on_clip else ""
        return (
            f"base LoRA {self.name} at {self.strength:g}{where}: load it, at this strength, with every LoRA of this run"
        )

    def record(self) -> Record:
        """As run.json and metadata have it. Earlier versions had none on a CLIP."""
        return {name: value for name, value in asdict(self).items() if name != "on_clip" or value}

    def fact(self) -> str:
        """What must stay equal for a run to be continued. A file may be moved and renamed."""
        return f"{self.digest} at {self.strength:g} ({self.use}{', clip' if self.on_clip else ''})"


@dataclass(frozen=True, kw_only=True)
class BaseLora:
    """A base LoRA whose tensors fit a network."""

    identity: BaseLoraIdentity
    changes: Mapping[str, Sequence[FrozenChange]]
    """{module path: its changes}."""


def always(loras: Sequence[BaseLora]) -> list[BaseLora]:
    """Those that belong to the base wherever it is used."""
    return [lora for lora in loras if lora.identity.use == "always"]


def has_adapter(loras: Sequence[BaseLora]) -> bool:
    """Whether one of them is for training only: a training adapter."""
    return any(lora.identity.use == "training" and lora.identity.strength for lora in loras)


@dataclass(frozen=True, kw_only=True)
class LaidLoras:
    """The base LoRAs that a network computes with."""

    training: Switch = field(default_factory=Switch)
    """Of those that are for training only."""
    always: Switch = field(default_factory=Switch)

    @contextmanager
    def as_used(self) -> Iterator[None]:
        """A context in which the network computes as generation will: without those that are for training only."""
        with self.training.off():
            yield


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """scale * up down: the change that a plain LoRA makes (arXiv 2106.09685)."""

    down: Tensor
    """(r, I) or (r, I, K, K), in any dtype."""
    up: Tensor
    """(O, r)."""
    scale: float
    """alpha / r, times the strength."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def add_to(self, out: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        up = (self.up.float() * self.scale).to(x.dtype)
        kernel = [1] * (self.down.ndim - 2)
        return add_low_rank(out, layer, x, self.down.to(x.dtype), up.reshape(*up.shape, *kernel))

    def dense(self) -> Tensor:
        return (self.up.float() @ self.down.float().flatten(1) * self.scale).reshape(self.shape)

    def rows(self, first: int, last: int) -> "LowRank":
        return replace(self, up=self.up[first:last])

    def to(self, device: torch.device) -> "LowRank":
        return replace(self, down=self.down.to(device), up=self.up.to(device))

    def tensors(self) -> Iterable[Tensor]:
        return self.down, self.up


@dataclass(frozen=True, kw_only=True)
class Factored:
    """The change of a LoHa, LoKr, full difference or Tucker form. It is multiplied out when it is needed, in the forward and again in the backward pass."""

    parts: Mapping[str, Tensor]
    """The factors, as in `host_formula`; alpha on the CPU."""
    strength: float
    shape: tuple[int, ...]
    first: int = 0
    """Number of its first row in the change that the factors make."""
    dtype: torch.dtype = torch.float32

    def dequantize(self) -> Tensor:
        """The change as a plain tensor: frozen layers ask for a quantized weight by this name, and keep none."""
        made = low_rank_change({name: tensor.float() for name, tensor in self.parts.items()})
        return (made[self.first : self.first + self.shape[0]] * self.strength).reshape(self.shape)

    def dense(self) -> Tensor:
        return self.dequantize()

    def add_to(self, out: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return out + frozen_linear(x, self, None, None)
        convolution = cast(nn.Conv2d, layer)
        return out + frozen_conv2d(x, self, None, convolution)

    def rows(self, first: int, last: int) -> "Factored":
        return replace(self, first=self.first + first, shape=(last - first, *self.shape[1:]))

    def to(self, device: torch.device) -> "Factored":
        moved = {name: tensor if name == "alpha" else tensor.to(device) for name, tensor in self.parts.items()}
        return replace(self, parts=moved)

    def tensors(self) -> Iterable[Tensor]:
        return [tensor for name, tensor in self.parts.items() if name != "alpha"]


@dataclass(frozen=True, kw_only=True)
class OfRows:
    """A change of some rows of a fused weight; the others stay as they are."""

    inner: FrozenChange
    offset: int
    """Number of the first changed row."""
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        inner = self.inner.dense().flatten(1)
        return F.pad(inner, (0, 0, *self._around)).reshape(self.shape)

    def add_to(self, out: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
        rows = self.inner.add_to(out.narrow(-1, self.offset, self.inner.shape[0]), layer, x)
        before, after = self._around
        return torch.cat([out.narrow(-1, 0, before), rows, out.narrow(-1, out.shape[-1] - after, after)], dim=-1)

    @property
    def _around(self) -> tuple[int, int]:
        return self.offset, self.shape[0] - self.offset - self.inner.shape[0]

    def rows(self, first: int, last: int) -> FrozenChange:
        """Only the rows that both have. Raises ValueError where there are none."""
        start, end = max(first, self.offset), min(last, self.offset + self.inner.shape[0])
        if start >= end:
            raise ValueError(f"rows {first} to {last} are not changed")
        inner = self.inner.rows(start - self.offset, end - self.offset)
        whole = (start, end) == (first, last)
        return inner if whole else OfRows(inner=inner, offset=start - first, shape=(last - first, *self.shape[1:]))

    def to(self, device: torch.device) -> "OfRows":
        return replace(self, inner=self.inner.to(device))

    def tensors(self) -> Iterable[Tensor]:
        return self.inner.tensors()


def change_of(
    parts: Mapping[str, Tensor], layer: nn.Module, strength: float, where: str, rows: int = 0
) -> FrozenChange:
    """The change that a module's adapter makes, {suffix: tensor}, for a Linear or Conv2d; of `rows` rows of it, 0 for all.

    Raises ModelFileError, which names `where`, for another shape than the layer's, and for DoRA: its change depends on the weights
    below it.
    """
    if kind := needs_base(parts):
        raise ModelFileError(
            f"{where} is of the kind {kind}, whose change depends on the weights that it is loaded over: merge it into the base (merge-base), and train on that"
        )
    if bias := next((name for name in BIAS if name in parts), None):
        raise ModelFileError(
            f"{where} changes a bias ({bias}), and a base LoRA changes weights: merge it into the base (merge-base), and train on that"
        )
    wanted = weight_shape(layer, where)
    wanted = (rows or wanted[0], *wanted[1:])
    change = _read(parts, strength, wanted, where)
    if change is None:
        made = _made_shape(parts, where)
        raise ModelFileError(
            f"{where} has the shape {made}, this model's layer {wanted}: it was made for a model of another size"
        )
    return change


def weight_shape(layer: nn.Module, where: str) -> tuple[int, ...]:
    """Shape of the weight of a layer that can have a base LoRA. Raises ModelFileError, which names `where`, for another layer."""
    if isinstance(layer, nn.Conv2d) and layer.groups == 1:
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    if (
        isinstance(layer, nn.Linear) or type(layer).__name__ == "Linear"
    ):  # ComfyUI's for quantized weights is no nn.Linear
        return cast(nn.Linear, layer).out_features, cast(nn.Linear, layer).in_features
    raise ModelFileError(f"{where} changes a {type(layer).__name__}: only Linear and Conv2d can have a base LoRA")


def _read(parts: Mapping[str, Tensor], strength: float, wanted: tuple[int, ...], where: str) -> FrozenChange | None:
    """None for another shape."""
    down, up = (parts.get(a, parts.get(b)) for a, b in (("lora_A.weight", "lora_down.weight"), ("lora_B.weight", "lora_up.weight")))  # fmt: skip
    made = _made_shape(parts, where)
    if made[0] != wanted[0] or made[1] != torch.Size(wanted[1:]).numel():
        return None
    if down is None or up is None or "lora_mid.weight" in parts:
        return Factored(parts=dict(parts), strength=strength, shape=wanted)
    rank = down.shape[0]
    alpha = parts["alpha"].item() if "alpha" in parts else rank
    return LowRank(down=down.reshape(rank, *wanted[1:]), up=up.flatten(1), scale=alpha / rank * strength)


def _made_shape(parts: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """(rows, columns) of a change, without computing it. Raises ModelFileError, which names `where`, for an incomplete adapter."""
    try:
        made = changed_shape(parts)
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from error
    if made is None:
        raise ModelFileError(f"{where}: an adapter of {sorted(parts)} is incomplete: the LoRA file is damaged")
    return made


@torch.inference_mode(False)
def lay_base_loras(module: nn.Module, loras: Sequence[BaseLora]) -> LaidLoras:
    """Have a frozen network compute with base LoRAs from now on. Those of strength 0 are left out.

    To be called where the weights have come to their place, and before an adapter is injected. Copies on the device are normal tensors,
    which autograd may save, even where a host calls this in inference mode.
    """
    laid, device = LaidLoras(), device_of(module)
    for lora in loras:
        if lora.identity.strength == 0:
            continue
        switch = laid.always if lora.identity.use == "always" else laid.training
        for path, changes in lora.changes.items():
            for change in changes:
                lay_change(module.get_submodule(path), change.to(device), switch)
    return laid


def lay_change(layer: nn.Module, change: FrozenChange, switch: Switch) -> None:
    """Have a layer compute with a change: on the parts of a fused Linear, of which each may get an adapter of its own."""
    if not isinstance(layer, FusedLinear):
        lay(layer, change, switch)
        return
    for part, (first, last) in rows_of(layer):
        try:
            mine = change.rows(first, last)
        except ValueError:
            continue
        lay(part, mine, switch)
