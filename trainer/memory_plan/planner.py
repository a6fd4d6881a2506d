"""From what a front end knows of a run to its memory plan: the largest step is rehearsed, the base's place chosen, what cannot fit refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol

from ..config.run import MemoryConfig, OptimizerConfig, TrainingConfig
from ..errors import ConfigError
from ..types import Size
from .base_sizes import BaseSizes
from .card import Card, seconds
from .plan import BucketPlan, Choice, Lever, MemoryPlan, Parts, check_fits, choose_base, size
from .rehearsal import Rehearsal

MOST_BUCKETS = 4
"""Sizes of images that are rehearsed for `lora-loom plan`."""
LEVERS = 3
WORTH_A_LEVER = 0.01
"""Share of the peak that a setting must save to be named."""
STATE_OF_8BIT = 0.26
"""Optimizer state of adamw8bit as a share of that of adamw: one byte in place of four, and a scale per 256."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """What of a run decides how much memory a step takes, and may be changed to take less."""

    memory: MemoryConfig
    batch_size: int
    quantize: str = "none"
    optimizer: str = "adamw"


class Rehearser(Protocol):
    """A run that is not loaded, as a front end knows it."""

    def sizes(self, quantize: str) -> BaseSizes:
        """How large the base is on the device, quantized so."""
        ...

    def step(self, way: Way, image: Size) -> Rehearsal:
        """A micro-batch of images of this size (width, height) in pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Around:
    """What a run needs besides its steps, in bytes."""

    encoders: int = 0
    """What stays on the device while training."""
    caching: int = 0
    """Peak while images and captions are encoded."""
    lighter: Callable[[], Sequence[tuple[str, int]]] = tuple
    """Settings with which encoding takes less, and how much it then takes, the mildest first."""
    is_cached: bool = False
    """A host has encoded already, with what room it had: the run is not refused for it."""
    sampling: int = 0
    """What a sample takes on top of the base, the adapter, the optimizer and `encoders`."""
    cache: int = 0


@dataclass(kw_only=True)
class Planner:
    """Plans one run."""

    run: Rehearser
    card: Card
    training: TrainingConfig
    optimizer: OptimizerConfig
    way: Way
    images: dict[Size, int]
    """{(width, height): how many training images have that size}."""
    around: Around
    segments: tuple[str, ...] = ()
    rate: float = 0.0
    """FLOP/s of large matrix products on the device; 0 for unknown."""
    say: Callable[[str], str] = str
    """How a setting, written as in a TOML file, is said to whoever reads the plan."""
    taken: Sequence[float] = ()
    """Seconds of steps that the run has taken before."""
    whole: bool = False
    """A full fine-tune: its base is neither streamed nor quantized."""
    _known_sizes: dict[str, BaseSizes] = field(default_factory=dict)
    _known: dict[tuple[str, bool, int, Size], Rehearsal] = field(default_factory=dict)

    @property
    def largest(self) -> Size:
        """The size whose step takes most."""
        return max(self.images, key=lambda image: image[0] * image[1])

    def plan(self, *, every_bucket: bool = False) -> MemoryPlan:
        """Raises ConfigError for a run that the device has no room for, with the nearest settings that fit."""
        self.way, keeps = self._kept(self.way)
        step, sizes, choice = self._step(self.way, self.largest), self._sizes(self.way), self._choice(self.way)
        parts = self._parts(self.way)
        encoding = 0 if self.around.is_cached else self.around.caching
        check_fits(max(parts.total, encoding), self.card, self._nearest(parts))
        stream = sizes.plan(choice.stream)
        count = self.training.gradient_accumulation_steps
        sampling = self.around.sampling
        made = MemoryPlan(
            device=self.card.name,
            available=self.card.free,
            parts=parts,
            caching=self.around.caching,
            samples=parts.total - parts.activations + sampling if sampling else 0,
            buckets=self._buckets() if every_bucket else [self._bucket(self.largest)],
            ram=sum(sizes.blocks[number] for number in stream.streamed),
            cache=self.around.cache,
            seconds=seconds(step.flop * count, self.rate) if self.rate else None,
            measured=median(self.taken) if self.taken else None,
            stream=choice.stream,
            streamed=len(stream.streamed),
            blocks=len(sizes.blocks),
            why=choice.why,
            keeps=keeps,
        )
        return replace(made, levers=self._levers(parts))

    def _kept(self, way: Way) -> tuple[Way, str]:
        """`way` without checkpointing where that is left to the plan and everything fits with ease; and why, "" where it does not."""
        memory = way.memory
        if not memory.may_keep:
            return way, ""
        lighter = replace(way, memory=replace(memory, checkpoint="off"))
        base, rest = self._sizes(way).total, self._rest(lighter)
        if not self.card.has_ease(base, rest):
            return way, ""
        room = f"{size(self.card.ram)} of RAM" if self.card.free is None else f"{size(self.card.free)}"
        needs = rest if self.card.free is None else base + rest
        return lighter, f"a step needs {size(needs)} of {room} that are free"

    def _step(self, way: Way, image: Size) -> Rehearsal:
        key = (way.memory.recompute, way.memory.checkpoint_offload, way.batch_size, image)
        if key not in self._known:
            self._known[key] = self.run.step(way, image)
        return self._known[key]

    def _sizes(self, way: Way) -> BaseSizes:
        if way.quantize not in self._known_sizes:
            self._known_sizes[way.quantize] = self.run.sizes(way.quantize)
        return self._known_sizes[way.quantize]

    def _choice(self, way: Way) -> Choice:
        return choose_base(self._sizes(way), self._rest(way), self.card, way.memory, self.segments)

    def _rest(self, way: Way) -> int:
        return replace(self._beside(way), base=0).total

    def _beside(self, way: Way) -> Parts:
        """Everything but the base."""
        step = self._step(way, self.largest)
        state = step.optimizer if way.optimizer == self.optimizer.name else round(step.optimizer * STATE_OF_8BIT)
        average = step.average if self.training.ema_decay else 0
        activations = max(step.activations, self.around.sampling)
        return Parts(
            base=0,
            adapter=step.adapter,
            optimizer=state + average,
            activations=activations,
            encoders=self.around.encoders,
            base_loras=step.base_loras,
        )

    def _parts(self, way: Way) -> Parts:
        beside = replace(self._beside(way), activations=self._step(way, self.largest).activations)
        return replace(beside, base=self._sizes(way).on_device(self._choice(way).stream))

    def _bucket(self, image: Size) -> BucketPlan:
        activations = self._step(self.way, image).activations
        return BucketPlan(size=image, images=self.images[image], activations=activations)

    def _buckets(self) -> list[BucketPlan]:
        """The largest, the smallest and the commonest between them."""
        by_area = sorted(self.images, key=lambda image: -image[0] * image[1])
        between = sorted(by_area[1:-1], key=lambda image: -self.images[image])[: MOST_BUCKETS - 2]
        chosen = {*by_area[:1], *between, *by_area[-1:]}
        return [self._bucket(image) for image in by_area if image in chosen]

    def _ways(self) -> list[tuple[str, Way, bool]]:
        """Returns (setting, the run with it, whether the LoRA stays the same): what would take less memory."""
        way = self.way
        found = []
        if not self.whole and way.memory.base != "stream" and not way.memory.vram_gb and not way.memory.shard:
            text = 'memory.base = "stream"' + (" and memory.compile = false" if way.memory.compile else "")
            memory = replace(way.memory, base="stream", compile=False)
            found.append((text, replace(way, memory=memory), not way.memory.compile))
        if not way.memory.gradient_checkpointing:
            found.append(self._checkpointing())
        elif way.memory.recompute != "all":
            found.append(
                ('memory.checkpoint = "all"', replace(way, memory=replace(way.memory, checkpoint="all")), True)
            )
        elif not way.memory.checkpoint_offload:
            found.append(self._offloading())
        if way.batch_size > 1:
            count = self.training.gradient_accumulation_steps * way.batch_size
            text = f"training.batch_size = 1 with gradient_accumulation_steps = {count}"
            found.append((text, replace(way, batch_size=1), False))
        if way.optimizer == "adamw":
            found.append(('optimizer.name = "adamw8bit"', replace(way, optimizer="adamw8bit"), False))
        if way.quantize == "none" and not self.whole:
            found += [(f'model.quantize = "{kind}"', replace(way, quantize=kind), False) for kind in ("int8", "nf4")]
        return found

    def _checkpointing(self) -> tuple[str, Way, bool]:
        """Switched on; where the plan would leave it out, it has to be asked for by both settings."""
        way = replace(self.way, memory=replace(self.way.memory, gradient_checkpointing=True, checkpoint="auto"))
        if not self._kept(way)[1]:
            return "memory.gradient_checkpointing = true", way, True
        both = 'memory.gradient_checkpointing = true and memory.checkpoint = "all"'
        return both, replace(way, memory=replace(way.memory, checkpoint="all")), True

    def _offloading(self) -> tuple[str, Way, bool]:
        memory = replace(self.way.memory, gradient_checkpointing=True, checkpoint="all", checkpoint_offload=True)
        return "memory.checkpoint_offload = true", replace(self.way, memory=memory), True

    def _left_to_auto(self) -> list[tuple[str, Way, bool]]:
        """What lets as much of the base be streamed as has to be, where it is not so already."""
        way, memory = self.way, self.way.memory
        if self.whole or memory.shard or (memory.base == "auto" and not memory.vram_gb):
            return []
        text = 'memory.base = "auto"' + (" and memory.vram_gb = 0" if memory.vram_gb else "")
        return [(text, replace(way, memory=replace(memory, base="auto", vram_gb=0.0)), True)]

    def _all_ways(self) -> list[tuple[str, Way, bool]]:
        """What may be done for a run that does not fit, with every lever of checkpointing, one after the other."""
        streamed = self.way.memory.base == "stream"
        found = [*self._left_to_auto(), *(one for one in self._ways() if streamed or one[1].memory.base != "stream")]
        last = max((number for number, one in enumerate(found) if "checkpoint" in one[0]), default=None)
        if last is not None and "offload" not in found[last][0] and not self.way.memory.checkpoint_offload:
            found.insert(last + 1, self._offloading())
        return found

    def _levers(self, parts: Parts) -> list[Lever]:
        levers = []
        for setting, way, same in self._ways():
            try:
                saves = parts.total - self._parts(way).total
            except ConfigError:  # a budget that is too small for this way
                continue
            if saves >= WORTH_A_LEVER * parts.total:
                levers.append(Lever(setting=self.say(setting), saves=saves, same_result=same))
        return sorted(levers, key=lambda lever: -lever.saves)[:LEVERS]

    def _nearest(self, parts: Parts) -> str:
        """The mildest settings that fit, as the end of an error message."""
        if self.card.free is None:
            return ""
        found = [self._nearest_step(parts, self.card.free)] if parts.total > self.card.free else []
        if not self.around.is_cached and self.around.caching > self.card.free:
            found.append(self._nearest_encoding(self.card.free))
        return ". ".join(found)

    def _nearest_encoding(self, free: int) -> str:
        """What makes encoding fit."""
        found = [(self.say(setting), need) for setting, need in self.around.lighter() if need < self.around.caching]
        needs = f"Encoding images and captions needs {size(self.around.caching)}"
        if names := [f"{setting} ({size(need)})" for setting, need in found if need <= free]:
            return f"{needs}; it fits with {' or '.join(names)}"
        less = "".join(f", {size(need)} with {setting}" for setting, need in found)
        return f"{needs}{less}: encode on the CPU before the run, with text.dtype set: `lora-loom cache` with model.device = 'cpu'"

    def _nearest_step(self, parts: Parts, free: int) -> str:
        names: list[str] = []
        way, least = self.way, parts.total
        for setting, changed, _ in self._all_ways():
            names.append(self.say(setting))
            way = _both(way, changed, self.way)
            least = self._least(way)
            if least <= free:
                return f"Nearest that fits: {', '.join(names)} ({size(least)})"
        remedy = f"se a lower {self.say('data.resolution')} or {self.say('network.rank')}, or a smaller base model"
        return f"With {', '.join(names)} it would still need {size(least)}: u{remedy}" if names else f"U{remedy}"

    def _least(self, way: Way) -> int:
        """Bytes with the base streamed as far as it goes, where it may be."""
        sizes = self._sizes(way)
        may_stream = way.memory.base != "resident" and not way.memory.shard
        return (sizes.least if may_stream else sizes.total) + replace(self._beside(way), base=0).total


def _both(way: Way, changed: Way, original: Way) -> Way:
    """`way` with what `changed` changes of the original as well."""
    memory = way.memory
    if changed.memory != original.memory:
        pairs = {
            name: getattr(changed.memory, name)
            for name in ("base", "vram_gb", "gradient_checkpointing", "checkpoint", "checkpoint_offload", "compile")
            if getattr(changed.memory, name) != getattr(original.memory, name)
        }
        memory = replace(memory, **pairs)
    return Way(
        memory=memory,
        batch_size=changed.batch_size if changed.batch_size != original.batch_size else way.batch_size,
        quantize=changed.quantize if changed.quantize != original.quantize else way.quantize,
        optimizer=changed.optimizer if changed.optimizer != original.optimizer else way.optimizer,
    )
