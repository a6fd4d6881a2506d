"""The learning rate of a run that asks for "auto": the number that it began with, of a new run what the rule gives."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..config.run import NetworkConfig, OptimizerConfig
from ..training.rate import Rate, auto_rate
from .record import recorded_tables
from .run_folder import RunFolder


def with_rate(
    optimizer: OptimizerConfig,
    network: NetworkConfig,
    folder: RunFolder,
    module: nn.Module,
    log: Callable[[str], None],
) -> OptimizerConfig:
    """The optimizer with a number for its rate. A run goes on at its own, whatever the rule of this version says."""
    if optimizer.learning_rate != "auto":
        return optimizer
    has_begun = folder.exists() and not folder.has_kept_nothing()
    recorded = recorded_tables(folder).get("optimizer", {}).get("learning_rate") if has_begun else None
    rate = Rate(value=recorded, origin="as this run began") if recorded else auto_rate(module, network, optimizer)
    log(f"learning rate: {rate.value:g} (auto, {rate.origin})")
    return replace(optimizer, learning_rate=rate.value)
