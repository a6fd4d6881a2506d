"""Layers with adapters in the places of modules, and PEFT's configuration of the kinds that are PEFT's."""

import math
import re
import warnings
from dataclasses import replace

from torch import nn

from ...choices import ADAPTERS
from ...config.run import NetworkConfig
from ...errors import ConfigError
from ...weights.frozen import replace_module
from ..adapted import NAME
from ..per_module import is_wide, matched, own_ranks
from .dense import Tucker
from .norms import Norm, is_norm
from .own import own_kind


def put_layers(root: nn.Module, paths: list[str], network: NetworkConfig) -> None:
    """Put a layer with an adapter in the place of each module. Raises ConfigError for one that cannot have this kind."""
    from peft import inject_adapter_in_model

    default = network.rank if network.alpha is None else network.alpha
    ranks, alphas = own_ranks(network, {path: root.get_submodule(path) for path in paths})
    make = ADAPTERS[network.kind].load()
    for_peft: dict[int, list[str]] = {}
    factors = matched("lokr_factors", network.lokr_factors, paths)
    for path in paths:
        base = root.get_submodule(path)
        if is_norm(base):
            replace_module(root, path, Norm(base, path, 1, 1.0))
            continue
        own = own_kind(make) or (Tucker if network.tucker and network.kind == "lora" and is_wide(base) else None)
        if own is None:
            for_peft.setdefault(factors.get(path, network.lokr_factor), []).append(path)
            continue
        if getattr(base, "groups", 1) > 1:
            raise ConfigError(
                f"{path} is a convolution with groups, which has no {network.kind} here: name it in network.exclude_modules"
            )
        rank, alpha = ranks.get(path, network.rank), alphas.get(path, default)
        replace_module(root, path, own(base, path, rank, alpha * math.sqrt(rank) if network.rslora else alpha))
    for factor, some in for_peft.items():
        pattern = "|".join(re.escape(path) for path in some)  # PEFT matches the whole path
        config = make(replace(network, lokr_factor=factor) if network.lokr_factors else network, default, pattern)
        # PEFT finds a pattern at the end of a path; with ^ it is the whole path.
        config.rank_pattern = {f"^{re.escape(path)}": ranks[path] for path in some if path in ranks}
        config.alpha_pattern = {f"^{re.escape(path)}": alphas[path] for path in some if path in alphas}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of the factor before
            inject_adapter_in_model(config, root, adapter_name=NAME)


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

    return peft.LoHaConfig(r=network.rank, target_modules=pattern, alpha=alpha, use_effective_conv2d=network.tucker)


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
