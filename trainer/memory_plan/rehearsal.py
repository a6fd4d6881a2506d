"""One training step on shapes: what it would hold at most besides the frozen base, and how much it would calculate."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config.run import NetworkConfig, OptimizerConfig
from ..diffusion.denoiser import Denoiser
from ..full.network import WholeNetwork, trained_part
from ..seeding import StepKey
from ..training.optim import make_optimizer
from ..training.step import LossSettings, preservation_loss, train_step
from ..types import Batch, Conditioning, Preserved
from ..weights.changes import laid_tensors
from .meter import LiveBytes
from .shapes_only import META, shapes_only

FP32 = 4
"""Bytes of a number of the adapter."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Bytes and arithmetic of a training step."""

    adapter: int
    """Parameters of the adapter, fp32; none where the base's own weights train."""
    average: int
    """Another copy of what trains, fp32."""
    optimizer: int
    """State of the optimizer."""
    activations: int
    """What comes on top at the highest moment of a step: activations, gradients, temporary copies of weights."""
    flop: int
    """Floating-point operations of one micro-batch, recomputation included."""
    base_loras: int = 0
    """Tensors of LoRAs below the one that trains."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step consists of besides network and batch."""

    targets: Sequence[str]
    """Paths of the modules that get an adapter."""
    network: NetworkConfig
    optimizer: OptimizerConfig
    loss: LossSettings
    compute_dtype: torch.dtype
    accumulates: bool = False
    """Whether gradients are held while the next micro-batch computes."""
    preserves: bool = False
    """Whether samples are held to the base's prediction, by passes of their own."""


def rehearse(denoiser: Denoiser, step: Step, latents: tuple[int, ...], conditioning: Conditioning) -> Rehearsal:
    """Take a step on shapes. The network lies on the meta device and gets an adapter; `latents` is (B, C, h, w).

    `conditioning` may hold real tensors: floating ones count as shapes.
    """
    options = {"seed": 0, "compute_dtype": step.compute_dtype}
    adapter = trained_part(denoiser.module, list(step.targets), step.network, **options)  # type: ignore[arg-type]
    parameters = list(adapter.parameters().values())
    meter = LiveBytes()
    below = meter.hold(laid_tensors(denoiser.module))
    held = below + meter.hold(tensors_of(denoiser.module))
    with shapes_only(), meter:
        batch = _batch(latents, as_shapes(conditioning), guided=step.loss.guided != "off")
        if step.preserves:
            batch = replace(batch, preserved=_preserved(batch))
        for micro_batch in range(1 + step.accumulates):
            meter.restart()
            place = StepKey(seed=0, step=0, micro_batch=micro_batch)
            for loss in (train_step, preservation_loss)[: 1 + step.preserves]:
                loss(denoiser, batch, step.loss, place).mean().backward()  # type: ignore[no-untyped-call]
    copy = sum(parameter.numel() * FP32 for parameter in parameters)
    return Rehearsal(
        adapter=0 if isinstance(adapter, WholeNetwork) else copy,
        average=copy,
        optimizer=optimizer_bytes(parameters, step.optimizer),
        activations=meter.peak - held,
        flop=meter.flop,
        base_loras=below,
    )


def _batch(latents: tuple[int, ...], conditioning: Conditioning, *, guided: bool) -> Batch:
    """Shapes of a batch, (B, C, h, w). A guided loss predicts twice, the second time without a gradient."""
    count = latents[0]
    return Batch(
        latents_BCHW=torch.empty(latents, device=META),
        conditioning=conditioning,
        weight_B=torch.ones(count, device=META),
        mask_B1HW=None,
        names=("",) * count,
        shares=(0.5,) * count,
        unconditional=conditioning if guided else None,
        guided_B=torch.ones(count, dtype=torch.bool) if guided else None,
    )


def _preserved(batch: Batch) -> Preserved:
    """All samples of a batch of shapes held to the base's prediction."""
    return Preserved(slots=tuple(range(batch.size)), conditioning=batch.conditioning, weight_S=batch.weight_B)


def most_live(module: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that a call of a network on the meta device holds at most, its weights not counted."""
    meter = LiveBytes()
    held = meter.hold(tensors_of(module))
    with torch.no_grad(), shapes_only(), meter:
        call()
    return meter.peak - held


def tensors_of(module: nn.Module) -> Iterable[Tensor]:
    """Parameters, buffers, and what are plain attributes: the factors of scaled weights, and base LoRAs."""
    yield from laid_tensors(module)
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        if isinstance(scale := vars(part).get("scale"), Tensor):
            yield scale


def as_shapes(value: Any) -> Any:
    """The same structure with floating tensors on the meta device; integers, which networks decide by, stay real."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device=META) if value.is_floating_point() else value.cpu()
    if isinstance(value, Mapping):
        return {name: as_shapes(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_shapes(item) for item in value)
    return value


def optimizer_bytes(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> int:
    """Bytes of an optimizer's state: of each shape one parameter of zeros takes one step on the CPU."""
    total = 0
    if isinstance(config.learning_rate, str):
        config = replace(config, learning_rate=1.0)  # it has no part in the size
    for shape, count in Counter(tuple(parameter.shape) for parameter in parameters).items():
        sample = nn.Parameter(torch.zeros(shape))
        sample.grad = torch.zeros(shape)
        optimizer = make_optimizer([sample], config)
        optimizer.step()
        total += count * _state_bytes(optimizer.state[sample])
    return total


def _state_bytes(state: Mapping[str, Any]) -> int:
    """What one parameter adds. Tables of quantized states, which all parameters share, are left out."""
    parts = (value for name, value in state.items() if isinstance(value, Tensor) and not name.startswith("qmap"))
    return sum(part.numel() * part.element_size() for part in parts)
