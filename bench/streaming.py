"""A streamed base of real size on cards of today, simulated: the ring's own order of copies, with a clock for copies and arithmetic.

Every block is streamed through two buffers, with per-block checkpointing. Copies run at the rate of the bus, one after another;
arithmetic runs at half of the card's dense bf16 peak. Nothing is computed or copied: the blocks are sizes, read off the network's
classes on the meta device. What a GPU adds (launches, contention, unpinned memory) is not in it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lora_loom.trainer.weights.arena import Arena
from lora_loom.trainer.weights.ring import Block, Ring
from lora_loom.trainer.weights.streaming import StreamSettings, find_blocks, stream_base

from .common import interleaved, keep, ratio
from .network_sizes import SIZES, Size

EFFICIENCY = 0.5
SLOTS = 2
CARDS = {
    "3060, PCIe 4": (25.5e12, 24e9),
    "4070, PCIe 4": (58e12, 24e9),
    "4090, PCIe 4": (165e12, 24e9),
    "4090, PCIe 3": (165e12, 12e9),
    "5090, PCIe 5": (209e12, 50e9),
}
"""Dense bf16 FLOP/s with fp32 accumulation, and bytes/s from pinned memory (12, 24 and 50 GB/s for PCIe 3, 4 and 5 x16)."""
BYTES = {"fp8": 1, "bf16": 2}
PACKED = 0.75
"""Share of a bf16 weight's bits that is left by a code of 4 bits for the exponent; it loses nothing."""


@dataclass
class Clock:
    """Seconds of the device's arithmetic, and of its copy engine."""

    now: float = 0.0
    copies_end: float = 0.0


class SimulatedCopier:
    """A copy begins when the one before it has ended, and not before it is asked for."""

    def __init__(self, clock: Clock, bytes_per_second: float) -> None:
        self.clock, self.rate = clock, bytes_per_second
        self.ready: dict[int, float] = {}

    def start(self, block: Block, buffer: torch.Tensor) -> None:
        self.clock.copies_end = max(self.clock.copies_end, self.clock.now) + block.size / self.rate
        self.ready[id(buffer)] = self.clock.copies_end

    def finish(self, buffer: torch.Tensor) -> None:
        self.clock.now = max(self.clock.now, self.ready[id(buffer)])

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Work:
    """One block: its weights, and FLOP of a forward pass for one sample."""

    name: str
    parameters: int
    linear: float
    attention: float

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    @property
    def backward(self) -> float:
        """Recomputation, and the gradient of the activations: no weight of the base has one."""
        return 2 * self.linear + 3.5 * self.attention


def work_of(size: Size, pixels: int, *, modulation: bool = True) -> list[Work]:
    """The blocks of a transformer at a square image of this side; without `modulation` its weights do not travel."""
    import diffusers

    with torch.device("meta"):
        network: Any = getattr(diffusers, size.network).from_config(dict(size.config))
    image, text = (pixels // 16) ** 2, size.text["text"][0]
    width = size.config["attention_head_dim"] * size.config["num_attention_heads"]
    found = []
    for name, paths in find_blocks(network).items():
        weights = [(path, network.get_submodule(path).weight.numel()) for path in paths]
        linear = sum(2.0 * count * tokens(path, image, text) for path, count in weights)
        travels = sum(count for path, count in weights if modulation or tokens(path, image, text) > 1)
        found.append(Work(name, travels, linear, 4.0 * (image + text) ** 2 * width))
    return found


def tokens(path: str, image: int, text: int) -> int:
    """How many tokens a layer sees of one sample."""
    if "norm" in path or "_mod." in path:  # modulation: one vector
        return 1
    if path.startswith("single_"):
        return image + text
    return text if any(mark in path for mark in ("context", "add_", "txt_")) else image


def slowdown(blocks: list[Work], bytes_per_weight: float, batch: int, flops: float, rate: float) -> float:
    """Seconds of a micro-batch on a streamed base / on a resident one, from the second micro-batch on."""
    clock = Clock()
    held = [Block(work.name, lambda: (), (), round(work.parameters * bytes_per_weight)) for work in blocks]
    ring = Ring(Arena(torch.device("meta")), SimulatedCopier(clock, rate), held, SLOTS)
    speed = flops * EFFICIENCY / batch

    def micro_batch() -> float:
        begun = clock.now
        for number, work in enumerate(blocks):
            ring.get(held[number])
            clock.now += work.forward / speed
        for number in reversed(range(len(blocks))):
            ring.get(held[number])
            clock.now += blocks[number].backward / speed
        return clock.now - begun

    for _ in range(2):
        micro_batch()
    return micro_batch() / sum((work.forward + work.backward) / speed for work in blocks)


def break_even(blocks: list[Work], bytes_per_weight: int, flops: float, rate: float, limit: float = 1.1) -> int:
    """The smallest batch with which streaming costs no more than `limit`."""
    return next(batch for batch in range(1, 1000) if slowdown(blocks, bytes_per_weight, batch, flops, rate) <= limit)


TOY = {
    "num_layers": 12, "attention_head_dim": 64, "num_attention_heads": 4, "caption_projection_dim": 256, "sample_size": 64,
    "joint_attention_dim": 256, "pooled_projection_dim": 128, "pos_embed_max_size": 64, "qk_norm": "rms_norm",
}  # fmt: skip


def stepper(streamed: bool) -> tuple[Callable[[], None], Any]:
    """A training step of a toy, and its stream."""
    from diffusers import SD3Transformer2DModel

    from lora_loom.trainer.config.run import NetworkConfig
    from lora_loom.trainer.families.common.modules import checkpoint_blocks
    from lora_loom.trainer.families.common.tiny import random_network
    from lora_loom.trainer.lora.adapter import inject

    module = random_network(SD3Transformer2DModel, TOY, 0)
    cpu, stream = torch.device("cpu"), None
    if streamed:
        stream = stream_base(module, StreamSettings(budget=None), cpu, None, torch.float32)
    checkpoint_blocks(module)
    paths = [path for path, _ in module.named_modules() if path.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))]
    adapter = inject(module, paths, NetworkConfig(rank=8), seed=0, compute_dtype=torch.float32)
    optimizer = torch.optim.AdamW(adapter.parameters().values())
    inputs = {"hidden_states": torch.randn(1, 16, 64, 64), "timestep": torch.tensor([500.0]),
              "encoder_hidden_states": torch.randn(1, 77, 256), "pooled_projections": torch.randn(1, 128)}  # fmt: skip

    def step() -> None:
        module(**inputs, return_dict=False)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, stream


def measured(rounds: int = 7) -> dict[str, Any]:
    """An SD3-class toy of 12 blocks on this CPU, every block streamed: what the ring costs where copying hides behind nothing."""
    torch.set_num_threads(1)
    (resident, _), (streamed, stream) = stepper(False), stepper(True)
    times = interleaved({"resident": resident, "streamed": streamed}, rounds, warmup=2, clock=time.process_time)
    moves = stream.ring.moves
    streamed()
    return {
        "step time streamed / resident (CPU toy)": ratio(times["streamed"], times["resident"]),
        "base bytes on the device / of the whole base": stream.arena.peak / stream.total,
        "blocks moved in a step": stream.ring.moves - moves,
        "2 (N - slots)": 2 * (len(stream.blocks) - SLOTS),
    }


def main() -> None:
    rows: dict[str, Any] = measured()
    for what, figure in rows.items():
        print(f"{what}: {figure:.4g}")
    for size in SIZES:
        if size.name not in ("SD3.5-L 8B", "Flux 12B", "Qwen-Image 20B"):
            continue
        for pixels in (512, 1024):
            blocks = work_of(size, pixels)
            for kind, width in BYTES.items():
                row = {}
                for card, (flops, rate) in CARDS.items():
                    ratio, batch = slowdown(blocks, width, 1, flops, rate), break_even(blocks, width, flops, rate)
                    row[card] = f"{ratio:.2f}" + ("" if batch == 1 else f" (1.10 from batch {batch})")
                rows[f"{size.name} {kind} {pixels} px"] = row
                print(f"{size.name} {kind} {pixels} px: " + "; ".join(f"{card} {text}" for card, text in row.items()))
            less = work_of(size, pixels, modulation=False)
            for name, moved, width in (
                ("fp8, modulation elsewhere", less, 1.0),
                ("bf16, packed without loss", blocks, 2 * PACKED),
            ):
                row = {card: f"{slowdown(moved, width, 1, *speeds):.2f}" for card, speeds in CARDS.items()}
                rows[f"{size.name} {name}, {pixels} px"] = row
                print(f"{size.name} {name}, {pixels} px: " + "; ".join(f"{card} {text}" for card, text in row.items()))
    keep("streaming", rows)


if __name__ == "__main__":
    main()
