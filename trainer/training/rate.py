"""The learning rate of `learning_rate = "auto"`: a rule from the width of the network and the optimizer.

For a LoRA with alpha = rank under Adam, 5e-4 (2000 / width)^p, as the cookbook of "LoRA Without Regret" (Thinking Machines,
2025) has it for language models, with p from 0.08 (Qwen) to 0.78 (Llama); here p is 0.4, near their mean (0.43). From a width
of 1000 on the rate stays between 2e-4 and 5e-4, what trainers of image models use. docs/benchmarks.md has what it learns on
toy bases 64 to 192 wide, which were in sight when p was chosen; it has not been compared on a real one.
"""

import math
from collections import Counter
from dataclasses import dataclass

from torch import nn

from ..config.network import WHOLE
from ..config.run import NetworkConfig, OptimizerConfig

AT_2000, EXPONENT = 5e-4, 0.4
LOWEST, HIGHEST, REAL = 2e-4, 5e-4, 1000
MOST = 1e-2
"""No rate above this, however small alpha / rank is."""
FAR = 15
"""Times or a share of the rule's rate: the known models' own rates (trainer/known_models, from 4e-5) lie nearer."""
ADAMS = (
    "adamw",
    "adamw8bit",
    "paged_adamw8bit",
    "adafactor",
    "ademamix",
    "ademamix8bit",
    "stable_adamw",
    "came",
    "soap",
    "muon",
)
LIONS = ("lion", "lion8bit", "paged_lion8bit")
SHARE = {**dict.fromkeys(ADAMS, 1.0), **dict.fromkeys(LIONS, 0.2)}
"""{optimizer: factor on the rule}. Lion steps by the sign alone and wants a third to a tenth (arXiv 2302.06675, 5)."""
WHOLE_RATE = 1e-5
"""Of a full fine-tune under Adam: what guides and trainers use for SDXL, Lumina2 and SD3.5 (1e-6 to 5e-5)."""
WITHOUT_RULE = 1e-4
"""What every run had in version 0.1 that named no rate."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A learning rate and where it comes from, in words."""

    value: float
    origin: str


def auto_rate(module: nn.Module, network: NetworkConfig, optimizer: OptimizerConfig) -> Rate:
    """The rate for an adapter on this network, which may have no weights.

    Where the rule says nothing (LoHa, LoKr, other optimizers, a network without a Linear) it is that of version 0.1.
    """
    if optimizer.entry.finds_rate:
        return Rate(value=1.0, origin=f"{optimizer.name} finds its own")
    if network.kind == WHOLE and optimizer.name in SHARE:
        return Rate(value=WHOLE_RATE * SHARE[optimizer.name], origin="what full fine-tunes are usually trained with")
    width = width_of(module)
    if network.kind not in ("lora", "dora") or optimizer.name not in SHARE or not width:
        return Rate(
            value=WITHOUT_RULE, origin=f"the usual one: there is no rule for {network.kind} with {optimizer.name}"
        )
    rate = AT_2000 * (2000 / width) ** EXPONENT
    if width >= REAL:
        rate = min(max(rate, LOWEST), HIGHEST)
    alpha = network.rank if network.alpha is None else network.alpha
    scale = alpha / (math.sqrt(network.rank) if network.rslora else network.rank)
    value = float(f"{min(rate * SHARE[optimizer.name] / scale, MOST):.2g}")
    return Rate(value=value, origin=f"for {optimizer.name} at width {width}")


def usual_rates(module: nn.Module, network: NetworkConfig, optimizer: OptimizerConfig) -> tuple[float, float] | None:
    """The lowest and the highest rate that is usual for an adapter on this network with this alpha; None where there is no rule."""
    if network.kind not in ("lora", "dora") or optimizer.name not in SHARE or not width_of(module):
        return None
    rate = auto_rate(module, network, optimizer).value
    return rate / FAR, rate * FAR


def width_of(module: nn.Module) -> int:
    """The width that most Linears of a network take in: its hidden size. 0 without a Linear."""
    widths = Counter(part.in_features for part in module.modules() if isinstance(part, nn.Linear))
    return max(widths, key=lambda width: (widths[width], width), default=0)
