"""Where the weights of a run of the graph lie, and how they compute: streamed, packed, or as ComfyUI has loaded them."""

from collections.abc import Callable
from dataclasses import replace

import torch

from .....trainer.config.run import MemoryConfig
from .....trainer.errors import ConfigError
from .....trainer.weights.frozen import compute_in
from .....trainer.weights.quantize import stored_bytes
from .....trainer.weights.streaming import GB, StreamSettings, stream_base, stream_settings
from ....sockets.values import MemoryValue
from ...backend.checkpointing import checkpoint
from ...backend.denoiser import LoadedDenoiser, is_dynamic
from ...comfy_types import ModelPatcher
from .packing import pack_weights

WHOLE = StreamSettings(budget=1 << 62)
"""A base that is copied to the device as a whole."""


def wanted_stream(patcher: ModelPatcher, memory: MemoryConfig) -> StreamSettings | None:
    """How the base is streamed from ComfyUI's own weights; None where ComfyUI loads all of it on the device."""
    size: int = patcher.model_size()
    if memory.base == "auto" and size <= memory.vram_gb * GB:
        return None
    return stream_settings(memory.base, memory.vram_gb)


@torch.inference_mode(False)
def prepare_weights(
    denoiser: LoadedDenoiser,
    patcher: ModelPatcher,
    value: MemoryValue,
    stream: StreamSettings | None,
    log: Callable[[str], None],
    *,
    rests: bool = False,
    keep: bool = False,
) -> None:
    """Where the weights lie and how they compute. `rests`: blocks are recomputed only where memory runs out; `keep`: quantized ones go on
    referring to what they were made of.

    Raises ConfigError for a model that is only partly on its device and is neither streamed nor quantized, or a budget that is too
    small. Of a quantized one each weight is brought to the device by itself, so that there is never a whole copy there.
    """
    checkpointed = denoiser.settings.blocks if value.memory.recomputes_blocks else ()
    if value.packing != "none":
        place = torch.device(patcher.load_device) if stream is None else None
        pack_weights(denoiser, value, place, log, keep=keep)
    elif stream is None:
        place_weights(denoiser, patcher, log)
    if stream is None and (value.packing != "none" or not is_dynamic(patcher)):
        compute_in(denoiser.module, denoiser.compute_dtype)
    else:
        laid_out = replace(stream or WHOLE, segments=checkpointed)
        device = torch.device(patcher.load_device)
        stream_base(denoiser.module, laid_out, device, None, denoiser.compute_dtype, keep_homes=True)
    checkpoint(denoiser.module, denoiser.settings.blocks, value.memory, rests=rests)


def place_weights(denoiser: LoadedDenoiser, patcher: ModelPatcher, log: Callable[[str], None]) -> None:
    """On the device as a whole. Raises ConfigError for a model that is only partly there."""
    device = torch.device(patcher.load_device)
    devices = {parameter.device.type for parameter in denoiser.module.parameters()}
    if is_dynamic(patcher):  # its weights stay on the CPU, and the run copies them to the device
        log(f"dynamic VRAM: training holds its own copy on {device}, {stored_bytes(denoiser.module):,} bytes")
    elif devices != {device.type}:
        raise ConfigError(
            f"ComfyUI has loaded this model only in part ({' and '.join(sorted(devices))} instead of {device.type}): free VRAM (unload other models), use a smaller or fp8 file, set base to stream in Loom Memory, or start ComfyUI without --lowvram"
        )
