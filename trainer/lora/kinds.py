"""PEFT's configuration of each kind of adapter."""

import re

from torch import nn

from ..choices import ADAPTERS
from ..config.run import NetworkConfig
from .per_module import own_ranks


def peft_config(network: NetworkConfig, root: nn.Module, paths: list[str]) -> object:
    """PEFT's configuration of the kind that `network` names, for the modules of `paths`."""
    alpha = network.rank if network.alpha is None else network.alpha
    pattern = "|".join(re.escape(path) for path in paths)  # PEFT matches the whole path
    config = ADAPTERS[network.kind].load()(network, alpha, pattern)
    ranks, alphas = own_ranks(network, {path: root.get_submodule(path) for path in paths})
    # PEFT finds a pattern at the end of a path; with ^ it is the whole path.
    config.rank_pattern = {f"^{re.escape(path)}": rank for path, rank in ranks.items()}
    config.alpha_pattern = {f"^{re.escape(path)}": alpha for path, alpha in alphas.items()}
    return config


def lora_config(network: NetworkConfig, alpha: float, pattern: str, *, use_dora: bool = False) -> object:
    """LoRA (arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732) if `network` asks for it."""
    import peft

    return peft.LoraConfig(
        r=network.rank, target_modules=pattern, lora_alpha=alpha, lora_dropout=network.dropout,
        use_rslora=network.rslora, use_dora=use_dora,
    )  # fmt: skip


def dora_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    return lora_config(network, alpha, pattern, use_dora=True)


def loha_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Hadamard product of two low-rank matrices (arXiv 2108.06098, 2309.14859)."""
    import peft

    return peft.LoHaConfig(r=network.rank, target_modules=pattern, alpha=alpha)


WHOLE = 2**24
"""A rank that no weight reaches half of: PEFT then keeps LoKr's factors whole."""


def lokr_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Kronecker product (arXiv 2212.10650, 2309.14859)."""
    import peft

    rank = WHOLE if network.lokr_full_matrix else network.rank
    return peft.LoKrConfig(
        r=rank,
        target_modules=pattern,
        alpha=WHOLE if network.lokr_full_matrix else alpha,
        decompose_factor=network.lokr_factor,
        decompose_both=network.lokr_decompose_both,
    )
