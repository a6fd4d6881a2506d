"""What a base that is split over GPUs cannot do: processes that share one must all run the same passes."""

from collections.abc import Sequence

from ..base_model import Base
from ..config.dataset import DatasetConfig
from ..config.run import TrainConfig
from ..errors import ConfigError


def check_passes(config: TrainConfig, base: Base) -> None:
    """Raises ConfigError where captions could ask for more than one pass in one of the processes."""
    batch_size = config.training.batch_size
    if config.memory.shard and base.settings.by_length and batch_size > 1:
        raise ConfigError(
            f"training.batch_size = {batch_size} does not go with memory.shard for {base.family.name}, which runs captions of unequal length apart: use batch_size = 1, and training.gradient_accumulation_steps = {batch_size}"
        )


def check_teachers(sets: Sequence[DatasetConfig], *, sharded: bool) -> None:
    """Raises ConfigError for teaching by the base, which takes one pass more."""
    if sharded and any(one.teacher == "base" for one in sets):
        raise ConfigError("dataset.teacher = 'base' does not go with memory.shard: use teacher = 'images', or one GPU")
