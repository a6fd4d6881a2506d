"""The learning rate of a run that asks for "auto": the number that it began with, of a new run what the rule gives."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ..config.run import TrainConfig
from ..training.rate import auto_rate, width_of
from .record import recorded_tables
from .run_folder import RunFolder


def with_rate(config: TrainConfig, folder: RunFolder, network: nn.Module, log: Callable[[str], None]) -> TrainConfig:
    """The configuration with a number. A run goes on at its own, whatever the rule of this version says."""
    optimizer = config.optimizer
    if optimizer.learning_rate != "auto":
        return config
    recorded = recorded_tables(folder).get("optimizer", {}).get("learning_rate") if folder.exists() else None
    rate = recorded or auto_rate(network, config.network, optimizer)
    origin = "as this run began" if recorded else f"for {optimizer.name} at width {width_of(network)}"
    log(f"learning rate: {rate:g} (auto, {origin})")
    return replace(config, optimizer=replace(optimizer, learning_rate=rate))
