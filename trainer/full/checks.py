"""What a full fine-tune does not go with, said before anything is loaded."""

from collections.abc import Iterator, Sequence

import torch

from ..base_model import Base
from ..config.dataset import DatasetConfig
from ..config.network import WHOLE
from ..config.run import TrainConfig
from ..errors import ConfigError
from ..weights.frozen import FrozenLinear

RESIDENT = "all weights change, so they have to stay on the device"


def check_full(config: TrainConfig, sets: Sequence[DatasetConfig], base: Base) -> None:
    """Raise ConfigError for the first setting that a full fine-tune does not go with."""
    if config.network.kind != WHOLE:
        return
    for option, is_set, remedy in _conflicts(config, sets):
        if is_set:
            raise ConfigError(f"{option} does not go with network.kind = {WHOLE!r}: {remedy}")
    _check_weights(config, base)


def _conflicts(config: TrainConfig, sets: Sequence[DatasetConfig]) -> Iterator[tuple[str, bool, str]]:
    """Returns (option with its value, whether it is set so, reason and remedy)."""
    model, memory = config.model, config.memory
    packed = "quantized weights cannot be trained; use a bf16 or fp32 base, or train a LoRA"
    yield f"model.quantize = {model.quantize!r}", model.quantize != "none", packed
    yield f"model.matmul = {model.matmul!r}", model.matmul != "off", packed
    half = "weights train in bfloat16 (rounded at random) or float32; float16 would lose small steps"
    yield "model.dtype = 'float16'", model.dtype == "float16", half
    yield "training.precision = 'float16'", config.training.precision == "float16", half
    yield "model.base_lora", bool(model.base_lora), "merge it into the base first: lora-loom merge-base"
    yield f"memory.base = {memory.base!r}", memory.base == "stream", f"{RESIDENT}; leave it out"
    yield f"memory.vram_gb = {memory.vram_gb:g}", bool(memory.vram_gb), f"{RESIDENT}; leave it out"
    yield "memory.on_oom = 'adapt'", memory.on_oom == "adapt", f"it streams the base; {RESIDENT}: use 'stop'"
    shared = "every process needs the whole network and its optimizer; leave it out, or train a LoRA"
    yield "memory.shard = true", memory.shard, shared
    text = "the text encoders are not trained with it; leave it out, or train a LoRA"
    yield "text.learning_rate", config.text.is_trained, text
    gone = "it compares with the base model, whose weights are gone once they train"
    yield "validation.doctor = true", config.validation.doctor, gone
    yield (
        f"validation.model = {config.validation.model!r}",
        bool(config.validation.model),
        "samples are the trained model's own",
    )
    taught = any(one.teacher == "base" for one in sets)
    yield "dataset.teacher = 'base'", taught, f"{gone}; use teacher = 'images'"
    find = "every trial would need a copy of the model; give a number (1e-5 is usual), or auto"
    yield "optimizer.learning_rate = 'find'", config.optimizer.learning_rate == "find", find


def _check_weights(config: TrainConfig, base: Base) -> None:
    """Raise ConfigError unless the base's weights, in the dtype that they will train in, can be trained by this optimizer. Reads headers only."""
    network = base.structure(config.model, config.training.precision).module
    if any(isinstance(part, FrozenLinear) and part.scale is not None for part in network.modules()):
        raise ConfigError(
            f"network.kind = {WHOLE!r}: {base.source.path} is scaled fp8, which cannot be trained; give the bf16 file"
        )
    dtypes = {parameter.dtype for parameter in network.parameters()}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if dtypes - {torch.float32, torch.bfloat16}:
        raise ConfigError(
            f"network.kind = {WHOLE!r}: this base model is {', '.join(names)}, and weights train in bfloat16 or float32: set model.dtype to one of them"
        )
    optimizer = config.optimizer
    if torch.bfloat16 in dtypes and (optimizer.entry.finds_rate or hasattr(optimizer.entry.load(), "eval")):
        raise ConfigError(
            f"optimizer.name = {optimizer.name!r} looks at all weights together, and in bfloat16 they are stepped one by one: use adafactor, adamw8bit or adamw, or model.dtype = 'float32' with training.precision = 'float32'"
        )
