"""What a run will need, before anything is loaded: the record that the log, run.json and `lora-loom plan` have."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from ..config.run import MemoryConfig
from ..errors import ConfigError, LoomError
from ..types import Record, Size
from ..weights.streaming import GB, StreamSettings, stream_settings
from .base_sizes import BaseSizes
from .card import Card, is_wanted

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Bytes on the device at the highest moment of a training step."""

    base: int
    adapter: int
    optimizer: int
    """State of the optimizer, and the EMA."""
    activations: int
    """With gradients and temporary copies of weights."""
    encoders: int = 0
    """What stays while training: the VAE of samples and another model that makes them, all encoders where they are used online or
    trained."""
    base_loras: int = 0
    """LoRAs below the one that trains."""

    @property
    def total(self) -> int:
        return self.base + self.rest

    @property
    def rest(self) -> int:
        """Everything but the base."""
        return self.adapter + self.optimizer + self.activations + self.encoders + self.base_loras


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """A size of images, and what a step on it needs."""

    size: Size
    """(width, height) in pixels."""
    images: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class Lever:
    """A setting that would save memory."""

    setting: str
    """As in a TOML file; in the graph the input of a node."""
    saves: int
    """Bytes of the peak."""
    same_result: bool
    """Whether the LoRA is the same, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Predicted memory and time of a run. All sizes in bytes."""

    device: str
    available: int | None
    """What the device has for the run; None on a CPU."""
    parts: Parts
    caching: int = 0
    """Peak while images and captions are encoded; 0 where a host had nothing to encode."""
    samples: int = 0
    """Peak while a sample is made; 0 without samples."""
    buckets: Sequence[BucketPlan] = ()
    ram: int = 0
    """Weights that stay in RAM or in their mapped file while training."""
    cache: int = 0
    """Size of the cache on disk."""
    seconds: tuple[float, float] | None = None
    """Fewest and most seconds of a step."""
    measured: float | None = None
    """Median of the steps that the run has taken before."""
    stream: StreamSettings | None = None
    streamed: int = 0
    """Blocks that pass through the ring."""
    blocks: int = 0
    why: str = ""
    """Why the base is resident or streamed."""
    levers: Sequence[Lever] = field(default=())
    keeps: str = ""
    """Why nothing is recomputed although checkpointing is on; "" where blocks are."""

    @property
    def peak(self) -> int:
        """The most that is on the device at any moment."""
        return max(self.parts.total, self.caching, self.samples)

    def to_dict(self) -> Record:
        """The value of `memory_plan` in run.json."""
        return {
            "format": FORMAT,
            "device": self.device,
            "available": self.available,
            "peak": self.peak,
            "parts": asdict(self.parts),
            "phases": {"caching": self.caching, "training": self.parts.total, "samples": self.samples},
            "buckets": [asdict(bucket) for bucket in self.buckets],
            "ram": self.ram,
            "cache": self.cache,
            "seconds_per_step": list(self.seconds) if self.seconds else None,
            "measured_seconds_per_step": self.measured,
            "base": {
                "mode": "stream" if self.streamed else "resident",
                "why": self.why,
                "streamed_blocks": self.streamed,
                "blocks": self.blocks,
            },
            "keeps_activations": self.keeps,
            "levers": [asdict(lever) for lever in self.levers],
        }

    def text(self) -> str:
        """The plan in lines."""
        parts, of = self.parts, f" of {size(self.available)}" if self.available is not None else ""
        lines = [
            f"predicted peak on {self.device}: {size(self.peak)}{of}",
            f"  training {size(parts.total)}: base {size(parts.base)}, activations {size(parts.activations)}, optimizer {size(parts.optimizer)}, adapter {size(parts.adapter)}"
            + (f", base LoRAs {size(parts.base_loras)}" if parts.base_loras else "")
            + (f", encoders {size(parts.encoders)}" if parts.encoders else ""),
        ]
        phases = {"caching": self.caching, "samples": self.samples}
        if texts := [f"{name} {size(need)}" for name, need in phases.items() if need]:
            lines.append("  " + ", ".join(texts))
        lines += [
            f"  images of {width}x{height} ({bucket.images}): activations {size(bucket.activations)}"
            for bucket in self.buckets
            for width, height in [bucket.size]
        ]
        lines.append(f"  base: {'streamed' if self.streamed else 'resident'}, because {self.why}")
        if self.keeps:
            lines.append(f"  activations: kept and not recomputed, because {self.keeps}")
        stays = [
            f"{what} {size(need)}"
            for what, need in (("RAM or mapped file", self.ram), ("cache on disk", self.cache))
            if need
        ]
        if stays:
            lines.append("  " + ", ".join(stays))
        if self.measured is not None:
            lines.append(f"  a step takes {self.measured:.3g} s (measured)")
        elif self.seconds:
            lines.append(f"  a step takes {self.seconds[0]:.2g} to {self.seconds[1]:.2g} s")
        lines += [
            f"  {lever.setting} would save {size(lever.saves)}{'' if lever.same_result else ' (another result)'}"
            for lever in self.levers
        ]
        return "\n".join(lines)


def as_record(plan: MemoryPlan | None) -> Record | None:
    """The value of `memory_plan` in run.json; None for a run that was not predicted."""
    return None if plan is None else plan.to_dict()


def keeps_activations(plan: MemoryPlan | None) -> bool:
    """Whether a run recomputes nothing as long as memory lasts."""
    return plan is not None and bool(plan.keeps)


def predicted(make: Callable[[], MemoryPlan], log: Callable[[str], None]) -> MemoryPlan | None:
    """The plan that `make` makes, in the log. None where runs are not to be planned, and for a network that cannot run on
    shapes, which trains all the same. Raises ConfigError for a run that does not fit."""
    if not is_wanted():
        return None
    try:
        plan = make()
    except LoomError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a network does that shapes do not allow
        log(f"memory is not predicted: {type(error).__name__}: {error}")
        return None
    log(plan.text())
    return plan


def size(count: int | None) -> str:
    """Bytes in words: "3.4 GB", "12 MB"."""
    assert count is not None
    return f"{count / GB:.2f} GB" if count >= GB / 2 else f"{count / 1e6:.3g} MB"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where the base lies, and why."""

    stream: StreamSettings | None
    why: str


def choose_base(
    sizes: BaseSizes, rest: int, card: Card, memory: MemoryConfig, segments: tuple[str, ...] = ()
) -> Choice:
    """What `memory.base` and `memory.vram_gb` come to on this card, beside `rest` bytes of everything else.

    auto streams what does not fit. Raises ConfigError for a budget that is below the smallest that works.
    """
    if asked := stream_settings(memory.base, memory.vram_gb, segments):
        name = 'memory.base = "stream"' if memory.base == "stream" else f"memory.vram_gb = {memory.vram_gb:g}"
        return Choice(stream=asked, why=f"{name} says so")
    if memory.base == "auto" and not memory.shard and card.free is not None:
        return _by_room(sizes, rest, card, card.free, segments)
    if memory.shard:
        return Choice(stream=None, why="memory.shard splits it over the devices")
    why = 'memory.base = "resident" says so' if memory.base == "resident" else "it computes where it lies"
    return Choice(stream=None, why=why)


def _by_room(sizes: BaseSizes, rest: int, card: Card, free: int, segments: tuple[str, ...]) -> Choice:
    """What fits stays. Where not even the least does, that is the budget, and `check_fits` says what would fit."""
    if card.fits(sizes.total + rest):
        return Choice(stream=None, why=f"all of it fits: {size(sizes.total + rest)} of {size(free)}")
    budget = max(card.room(rest), sizes.least)
    why = f"{size(sizes.total)}, and {size(rest)} for everything else, are more than the {size(free)} of {card.name}"
    return Choice(stream=StreamSettings(budget=budget, segments=segments), why=why)


def check_fits(need: int, card: Card, nearest: str) -> None:
    """Raise ConfigError, with the nearest settings that fit, for a run that the device has no room for."""
    if card.free is not None and need > card.free:
        raise ConfigError(f"this run needs {size(need)} on {card.name}, which has {size(card.free)} for it. {nearest}")
