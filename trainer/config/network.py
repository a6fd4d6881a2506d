"""Options of the adapter: the [network] table."""

from dataclasses import dataclass
from typing import Annotated

from ..choices import ADAPTERS
from .checks import OneOf
from .section import Section, require


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section, table="network"):
    """The adapter: its type, rank and target modules."""

    kind: Annotated[str, OneOf(ADAPTERS)] = "lora"
    """LoRA type: how the change of a weight is made up."""
    rank: int = 16
    """Rank (dimension) of the adapter. A higher one learns more and forgets more; 8 to 32 suits most concepts."""
    alpha: float | None = None
    """The adapter's change of a weight is scaled by alpha / rank; left out, alpha is the rank and the scale is 1."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) instead, which keeps large ranks trainable (arXiv 2312.03732). lora and dora only."""
    target_modules: str = "default"
    """Modules of the base model that get an adapter: a preset of the family (attention, attention+mlp, all, conv …), or "regex:" and a pattern for module paths. default: attention, feed-forward and modulation in the blocks of a transformer, attention and feed-forward of a UNet."""
    exclude_modules: str = ""
    """Regular expression; modules whose path matches get no adapter."""
    dropout: float = 0.0
    """Probability that an input of the adapter is set to zero in a training step. lora and dora only."""
    lokr_factor: int = -1
    """Block size of LoKr's small factor; -1 takes the one that splits a weight most evenly."""
    init_from: str = ""
    """A LoRA file that training starts from; its type, rank and target modules must be those of this table."""

    def check(self) -> None:
        require(self.rank >= 1, "network.rank", self.rank, "use 1 or more (16 is usual)")
        require(self.rank <= 16_384, "network.rank", self.rank, "use 16384 or less (16 is usual)")
        remedy = "use a number above 0, or leave it out for alpha = rank"
        require(self.alpha is None or self.alpha > 0, "network.alpha", self.alpha, remedy)
        require(0 <= self.dropout < 1, "network.dropout", self.dropout, "use 0 up to below 1")
        known = self.lokr_factor == -1 or self.lokr_factor >= 1
        require(known, "network.lokr_factor", self.lokr_factor, "use -1 (the most even one) or 1 and more")
        read = ADAPTERS[self.kind].options
        remedy = f"{self.kind} has no dropout here; use 0, or lora"
        require(not self.dropout or "dropout" in read, "network.dropout", self.dropout, remedy)
        remedy = f"{self.kind} has no rslora; leave it out, or use lora"
        require(not self.rslora or "rslora" in read, "network.rslora", self.rslora, remedy)
