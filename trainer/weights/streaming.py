"""A frozen base that is larger than the device: its weights stay where they are and pass through a ring of buffers.

The weights of Linear layers and 2-D convolutions in a network's repeated blocks are streamed; what fits the budget stays on
the device, and so do norms, biases and embeddings. A streamed layer computes by its own autograd function, which asks the
ring for the weight in the forward pass and again in the backward pass and saves nothing, so that the result is that of a base
which lies on the device as a whole, bit for bit.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .arena import Arena, Copies
from .frozen import FrozenConv2d, FrozenLinear, compute_in, is_quantized_tensor
from .pinned_copier import PinnedCopier
from .ring import Block, Copier, DirectCopier, Ring, make_block

GB = 1e9
STACKS = (nn.ModuleList, nn.Sequential)
LEAST_LAYERS = 2
"""A block has at least as many streamed layers."""


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How much of a base may be on its device."""

    budget: int | None
    """Bytes; None is the least that does not wait for every block."""
    segments: tuple[str, ...] = ()
    """Classes whose modules are recomputed as a whole: each is one block, so that a recomputation finds all of it."""


def stream_settings(base: str, vram_gb: float, segments: tuple[str, ...] = ()) -> StreamSettings | None:
    """What `memory.base` and `memory.vram_gb` ask for; None for a base that lies on its device as a whole."""
    if base == "stream" or vram_gb:
        return StreamSettings(budget=round(vram_gb * GB) if vram_gb else None, segments=segments)
    return None


@dataclass(frozen=True)
class StreamPlan:
    """Which blocks are streamed, by their number, through how many buffers."""

    streamed: tuple[int, ...]
    slots: int


class StreamedWeight:
    """The weight of one layer: where it stays, and how it is asked for. It computes as any quantized weight does: by `dequantize`."""

    def __init__(self, layer: nn.Module, device: torch.device, dtype: torch.dtype, first: int) -> None:
        self._layer = layer
        self._first = first
        """Its first part's number in the block."""
        self.device, self.dtype = device, dtype
        self._ring: Ring | None = None
        self._block: Block | None = None

    @property
    def home(self) -> Any:
        """The weight as it is kept."""
        return self._layer._parameters["weight"]

    @property
    def shape(self) -> torch.Size:
        return self.home.shape

    def join(self, ring: Ring, block: Block) -> None:
        self._ring, self._block = ring, block

    def stored(self) -> Any:
        """The weight on the device as it is kept, in the ring's own buffer. Used before the next block."""
        assert self._ring is not None
        assert self._block is not None
        return _joined(self.home, self._ring.get(self._block), self._first)[0]

    def dequantize(self) -> Tensor:
        """The weight on the device as plain numbers: the ring's own buffer, or unpacked from it. Used before the next block."""
        found = self.stored()
        plain: Tensor = found.dequantize() if is_quantized_tensor(found) else found
        return plain


def plain_parts(weight: Any) -> list[Tensor]:
    """The plain tensors that a weight consists of: several for a quantized one."""
    if not is_quantized_tensor(weight):
        return [weight.detach()]
    names, _ = weight.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(weight, name))]


def _joined(like: Any, parts: Sequence[Tensor], first: int) -> tuple[Tensor, int]:
    """A tensor as `like` from the parts that begin at `first`, and the number of the part after them."""
    if not is_quantized_tensor(like):
        return parts[first], first + 1
    names, context = like.__tensor_flatten__()
    inner: dict[str, Tensor] = {}
    for name in names:
        inner[name], first = _joined(getattr(like, name), parts, first)
    return type(like).__tensor_unflatten__(inner, context, like.shape, like.stride()), first


def find_blocks(module: nn.Module, segments: Collection[str] = ()) -> dict[str, list[str]]:
    """Returns {block: paths of the layers that can be streamed}, in the network's order.

    A block is the smallest member of a list of modules that has two such layers or more, or a module of the classes
    `segments`. Layers outside of blocks stay on the device.
    """
    found: dict[str, list[str]] = {}

    def visit(path: str, part: nn.Module, is_member: bool) -> None:
        before = len(found)
        if type(part).__name__ not in segments:
            for name, child in part.named_children():
                visit(f"{path}.{name}" if path else name, child, isinstance(part, STACKS))
        whole = type(part).__name__ in segments or (is_member and len(found) == before)
        layers = [f"{path}.{name}" for name, child in part.named_modules() if name and _can_stream(child)]
        if whole and len(layers) >= LEAST_LAYERS:
            found[path] = layers

    visit("", module, False)
    return found


def _can_stream(part: nn.Module) -> bool:
    if not isinstance(part._parameters.get("weight"), Tensor):
        return False
    if isinstance(part, nn.Linear):
        return type(part) is nn.Linear or isinstance(part, FrozenLinear) or is_quantized_tensor(part.weight)
    return type(part) in (nn.Conv2d, FrozenConv2d) and part.padding_mode == "zeros"


def choose(sizes: Sequence[int], fixed: int, budget: int | None, slots: int = 2) -> StreamPlan:
    """Keeps as many blocks on the device as the budget allows, the streamed ones evenly spread, so that a copy hides behind several.

    `sizes` are the blocks' bytes, `fixed` those of everything else. Raises ConfigError below the smallest budget that works.
    """
    count, every = len(sizes), tuple(range(len(sizes)))
    if budget is None:
        return StreamPlan(every, slots) if count > slots else StreamPlan((), 0)
    if fixed + sum(sizes) <= budget:
        return StreamPlan((), 0)
    for buffers in (2, 1):
        for streamed in range(buffers + 1, count + 1):
            numbers = tuple(int((i + 0.5) * count / streamed) for i in range(streamed))
            if needed(sizes, fixed, StreamPlan(numbers, buffers)) <= budget:
                return StreamPlan(numbers, buffers)
    least = needed(sizes, fixed, StreamPlan(every, 1)) if count > 1 else fixed + sum(sizes)
    raise ConfigError(
        f"memory.vram_gb = {budget / GB:g}: this base needs at least {_up(least):g} even where all blocks are streamed (one buffer for the largest block, and what has to stay); give {_up(least):g} or more"
    )


def _up(size: int) -> float:
    """Returns the size in GB, rounded up to four digits behind the point."""
    return -(-size // 100_000) / 10_000


def needed(sizes: Sequence[int], fixed: int, plan: StreamPlan) -> int:
    """Bytes on the device."""
    streamed = set(plan.streamed)
    stays = sum(size for number, size in enumerate(sizes) if number not in streamed)
    return fixed + stays + plan.slots * max((sizes[number] for number in streamed), default=0)


@dataclass(kw_only=True, eq=False)
class BaseStream:
    """What a streamed base has on its device."""

    device: torch.device
    arena: Arena
    ring: Ring | None
    """None where everything fits."""
    blocks: list[Block]
    """The streamed ones."""
    sizes: list[int]
    """Bytes of every block, streamed or not, as it lies on the device."""
    fixed: int
    """Bytes of everything that is in no block."""
    copies: Copies
    """The blocks that stay, if what they were copied from is kept."""

    @property
    def total(self) -> int:
        """Bytes of the whole base, as it would lie on the device."""
        return self.fixed + sum(self.sizes)

    @property
    def held(self) -> int:
        """Bytes on the device that `rest` gives back."""
        return self.copies.held + (self.ring.held if self.ring is not None else 0)

    def rest(self) -> int:
        """Give back the ring and the blocks that stay; returns the bytes. The network cannot compute until `wake`.

        Only between two passes: nothing may be launched that uses them, and no graph of autograd may be alive.
        """
        freed = self.held
        if self.ring is not None:
            self.ring.rest()
        self.copies.rest()
        return freed

    def wake(self) -> None:
        """Have everything on the device again, with the same bits. Raises torch.cuda.OutOfMemoryError, and then holds none of it."""
        try:
            if self.ring is not None:
                self.ring.wake()
            self.copies.wake()
        except torch.cuda.OutOfMemoryError:
            self.rest()
            raise

    def close(self) -> None:
        """Give the ring's buffers back. The network cannot compute afterwards."""
        if self.ring is not None:
            self.ring.close()

    def work_done(self) -> str:
        """What the ring has done so far."""
        assert self.ring is not None
        return f"streamed base: {self.ring.moves} blocks brought to {self.device}, {self.ring.waits} of them not in advance"

    def text(self) -> str:
        """How the base is laid out."""
        if self.ring is None:
            return f"the base fits its budget: all {len(self.sizes)} blocks stay on {self.device}, {self.total:,} bytes"
        return f"streamed base: {len(self.blocks)} of {len(self.sizes)} blocks pass through a ring on {self.device}; it holds {self.arena.live:,} bytes of {self.total:,}"


def stream_base(
    module: nn.Module,
    settings: StreamSettings,
    device: torch.device,
    dtype: torch.dtype | None,
    compute_dtype: torch.dtype,
    copier: Callable[[torch.device, int], Copier] | None = None,
    slots: int = 2,
    keep_homes: bool = False,
) -> BaseStream:
    """Lay a frozen network out for its device. Its weights are where they are kept: in RAM, or mapped from a file.

    `dtype` is what weights have on the device (None: as they are kept), `compute_dtype` that of the arithmetic. Raises
    ConfigError for a budget that is too small. Without a budget all blocks pass through `slots` buffers. With `keep_homes` that from
    which a block that stays was copied is not let go, so that `BaseStream.rest` gives the copy back too.
    """
    layers = find_blocks(module, settings.segments)
    kept = {path for paths in layers.values() for path in paths}
    for path, part in list(module.named_modules()):
        _place(part, device, dtype, leave="weight" if path in kept else "")
    compute_in(module, compute_dtype)
    blocks, weights = [], {}
    for name, paths in layers.items():
        block, mine = _make(module, name, paths, device, dtype)
        blocks.append(block)
        weights[name] = mine
    fixed = sum(map(_bytes, [*module.parameters(), *module.buffers()])) - sum(
        _bytes(module.get_submodule(path)._parameters["weight"]) for path in kept
    )
    plan = choose([block.size for block in blocks], fixed, settings.budget, slots)
    streamed = [blocks[number] for number in plan.streamed]
    arena = Arena(device, None if settings.budget is None else settings.budget)
    arena.hold(fixed)
    copies = Copies(arena, partial(_place, device=device, dtype=dtype))
    for block in blocks:
        if block not in streamed:
            arena.hold(block.size)
            parts = [module.get_submodule(path) for path in layers[block.name]]
            homes = [part._parameters["weight"] for part in parts]
            for part in parts:
                _place(part, device, dtype)
            if keep_homes:
                copies.add(block.size, parts, homes)
    ring = None
    if streamed:
        ring = Ring(arena, (copier or _copier)(device, max(block.size for block in streamed)), streamed, plan.slots)
        for block in streamed:
            for path, weight in zip(layers[block.name], weights[block.name], strict=True):
                weight.join(ring, block)
                module.get_submodule(path).stream = weight  # type: ignore[assignment]
    sizes = [block.size for block in blocks]
    made = BaseStream(device=device, arena=arena, ring=ring, blocks=streamed, sizes=sizes, fixed=fixed, copies=copies)
    module.base_stream = made  # type: ignore[assignment]
    return made


def stream_of(module: nn.Module) -> BaseStream | None:
    """How a network, or one that is a part of it, is streamed."""
    found = (part.__dict__.get("base_stream") for part in module.modules())
    return next((stream for stream in found if stream is not None), None)


def device_of(module: nn.Module) -> torch.device:
    """Where a network computes: a streamed one keeps most of its weights elsewhere."""
    stream = stream_of(module)
    return next(module.parameters()).device if stream is None else stream.device


def _copier(device: torch.device, size: int) -> Copier:
    return PinnedCopier(device, size) if device.type == "cuda" else DirectCopier()


def _make(
    module: nn.Module, name: str, paths: Sequence[str], device: torch.device, dtype: torch.dtype | None
) -> tuple[Block, list[StreamedWeight]]:
    """A block of these layers, which become layers that can be streamed."""
    layers: list[nn.Module] = []
    weights: list[StreamedWeight] = []
    dtypes: list[torch.dtype] = []
    for path in paths:
        layer = _frozen(module, path)
        parts = plain_parts(layer.weight)
        plain = not is_quantized_tensor(layer.weight)
        mine = [_target(part, dtype) if plain else part.dtype for part in parts]
        weights.append(StreamedWeight(layer, device, mine[0] if plain else layer.weight.dtype, len(dtypes)))  # type: ignore[arg-type]
        layers.append(layer)
        dtypes += mine
    return make_block(name, partial(_homes, layers), dtypes, device), weights


def _homes(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [part for layer in layers for part in plain_parts(layer._parameters["weight"])]


def _frozen(module: nn.Module, path: str) -> nn.Module:
    """The layer as one that asks for its weight."""
    layer: Any = module.get_submodule(path)
    if isinstance(layer, FrozenLinear | FrozenConv2d):
        return layer
    if type(layer) in (nn.Linear, nn.Conv2d):
        layer.__class__ = FrozenLinear if isinstance(layer, nn.Linear) else FrozenConv2d
        return layer
    made = FrozenLinear(layer.in_features, layer.out_features, bias=False, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent) if parent else module, leaf, made.eval())
    return made


def _target(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _place(part: nn.Module, device: torch.device, dtype: torch.dtype | None, leave: str = "") -> None:
    """A module's own parameters and buffers to the device. What is there already stays the object it is."""
    for name, parameter in list(part._parameters.items()):
        if parameter is None or name == leave:
            continue
        moved = (
            parameter.to(device)
            if is_quantized_tensor(parameter)
            else parameter.detach().to(device, _target(parameter, dtype))
        )
        if (
            is_quantized_tensor(parameter)
            or moved.data_ptr() != parameter.data_ptr()
            or moved.device != parameter.device
        ):
            part._parameters[name] = nn.Parameter(moved, requires_grad=False)
    for name, buffer in list(part._buffers.items()):
        if buffer is not None:
            part._buffers[name] = buffer.to(device, _target(buffer, dtype))
    scale = vars(part).get("scale")
    if isinstance(scale, Tensor):
        part.scale = scale.to(device)


def _bytes(tensor: Any) -> int:
    return sum(part.numel() * part.element_size() for part in plain_parts(tensor))
