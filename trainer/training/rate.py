"""The learning rate of `learning_rate = "auto"`: a rule from the width of the network and the optimizer.

For a LoRA with alpha = rank under Adam, 5e-4 (2000 / width)^p, as the cookbook of "LoRA Without Regret" (Thinking Machines,
2025) has it for language models, with p from 0.08 (Qwen) to 0.78 (Llama); here p is their geometric mean, 0.25. From a width
of 1000 on the rate stays between 2e-4 and 5e-4, what trainers of image models use. docs/benchmarks.md has what it learns on
the demo base; it has not been compared on a real one.
"""

import math
from collections import Counter

from torch import nn

from ..config.run import NetworkConfig, OptimizerConfig
from ..errors import ConfigError

AT_2000, EXPONENT = 5e-4, 0.25
LOWEST, HIGHEST, REAL = 2e-4, 5e-4, 1000
MOST = 1e-2
"""No rate above this, however small alpha / rank is."""
SHARE = {"adamw": 1.0, "adamw8bit": 1.0, "adafactor": 1.0, "lion": 0.2}
"""{optimizer: factor on the rule}. Lion steps by the sign alone and wants a third to a tenth (arXiv 2302.06675, 5)."""


def auto_rate(module: nn.Module, network: NetworkConfig, optimizer: OptimizerConfig) -> float:
    """The rate for an adapter on this network, which may have no weights. Raises ConfigError where the rule says nothing."""
    if optimizer.name == "prodigy":
        return 1.0
    if network.kind not in ("lora", "dora") or optimizer.name not in SHARE:
        raise ConfigError(
            f"optimizer.learning_rate = 'auto': there is a rule for lora and dora with {', '.join(SHARE)} and prodigy, "
            f"not for {network.kind} with {optimizer.name}; give a number"
        )
    width = width_of(module)
    rate = AT_2000 * (2000 / width) ** EXPONENT
    if width >= REAL:
        rate = min(max(rate, LOWEST), HIGHEST)
    alpha = network.rank if network.alpha is None else network.alpha
    scale = alpha / (math.sqrt(network.rank) if network.rslora else network.rank)
    return float(f"{min(rate * SHARE[optimizer.name] / scale, MOST):.2g}")


def width_of(module: nn.Module) -> int:
    """The width that most Linears of a network take in: its hidden size."""
    widths = Counter(part.in_features for part in module.modules() if isinstance(part, nn.Linear))
    if not widths:
        raise ConfigError(
            "optimizer.learning_rate = 'auto': this network has no Linear to tell its width by; give a number"
        )
    return max(widths, key=lambda width: (widths[width], width))
