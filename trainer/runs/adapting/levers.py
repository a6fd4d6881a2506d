"""Settings that take less memory and give the same LoRA, bit for bit, from the mildest on."""

from dataclasses import dataclass, replace

from ...config.run import MemoryConfig
from ...memory_plan.base_sizes import BaseSizes
from ...weights.streaming import GB, StreamSettings, stream_settings

WORTH = 0.95
"""A smaller budget is one if it is below this share of what the base holds."""
MARGIN = 1.02
"""On the least budget: the size of a base that is quantized is predicted."""


@dataclass(frozen=True)
class Lever:
    """A setting that takes less memory."""

    setting: str
    """As in a TOML file."""
    memory: MemoryConfig
    """The section with it."""


def next_lever(memory: MemoryConfig, sizes: BaseSizes, stream: StreamSettings | None) -> Lever | None:
    """The mildest setting that is left, or None. `stream` is how the base is streamed now."""
    if stream is not None and stream_settings(memory.base, memory.vram_gb) is None:  # as auto has chosen
        memory = replace(memory, base="stream", vram_gb=(stream.budget or 0) / GB)
    if memory.recompute != "all":
        return Lever('memory.checkpoint = "all"', replace(memory, gradient_checkpointing=True, checkpoint="all"))
    if not memory.checkpoint_offload and memory.recompute != "off":
        return Lever("memory.checkpoint_offload = true", replace(memory, checkpoint_offload=True))
    held, least = sizes.on_device(stream), round(sizes.least * MARGIN)
    if memory.shard or least > WORTH * held:
        return None
    budget = -(-max(least, held // 2) // 1000) * 1000 / GB
    return Lever(f"memory.vram_gb = {budget:g}", replace(memory, base="stream", vram_gb=budget))
