"""A frozen base split over the GPUs of a run (FSDP): each holds its part, and the layers that compute are put together
for that moment. Adapters are put on afterwards, so that they stay whole in every process."""

from collections.abc import Sequence

import torch
from torch import nn

from ..config.dataset import DatasetConfig
from ..config.run import ModelConfig, TrainingConfig
from ..errors import ConfigError
from .processes import Processes


def check_sharding(wanted: bool, processes: Processes, model: ModelConfig) -> None:
    """Raise ConfigError if memory.shard is set and the base model cannot be sharded."""
    if not wanted:
        return
    if processes.count == 1:
        raise ConfigError(
            "memory.shard = true would do nothing in one process: leave it out, or start one process per GPU with torchrun or accelerate launch"
        )
    for name, off in (("quantize", "none"), ("matmul", "off")):
        if (value := getattr(model, name)) != off:
            raise ConfigError(
                f"memory.shard = true with model.{name} = {value!r}: quantized weights cannot be sharded; use one of the two"
            )
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"memory.shard = true needs torch 2.6 or newer, this is {torch.__version__}") from error


def check_passes(training: TrainingConfig, *, sharded: bool, by_length: bool, family: str) -> None:
    """Raises ConfigError: processes that share a base must all run the same passes, and captions could ask for more in one.

    `by_length`: the family runs captions of unequal length apart.
    """
    size = training.batch_size
    if sharded and by_length and size > 1:
        raise ConfigError(
            f"training.batch_size = {size} does not go with memory.shard for {family}, which runs captions of unequal length apart: use batch_size = 1, and training.gradient_accumulation_steps = {size}"
        )


def check_teachers(sets: Sequence[DatasetConfig], *, sharded: bool) -> None:
    """Raises ConfigError: processes that share a base must all run the same passes, and teaching takes one more."""
    if sharded and any(one.teacher == "base" for one in sets):
        raise ConfigError("dataset.teacher = 'base' does not go with memory.shard: use teacher = 'images', or one GPU")


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a frozen network in place, block by block, over all processes. Every process keeps its part on its `device`.

    The network may be on the CPU or in a memory-mapped file: no device ever holds more than its part and one whole block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)  # the parameters outside the blocks


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: the members of its module lists."""
    return [block for part in module.children() if isinstance(part, nn.ModuleList) for block in part]
