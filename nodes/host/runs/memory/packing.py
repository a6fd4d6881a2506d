"""The base of a run in fewer bits, as LoomMemory says."""

from collections.abc import Callable

import torch

from .....trainer.weights.packing.layers import use_products
from .....trainer.weights.quantize import quantize, stored_bytes
from ....sockets.values import MemoryValue
from ...backend.denoiser import LoadedDenoiser
from ...backend.sharing.share_storage import codes_of


def pack_weights(
    denoiser: LoadedDenoiser, memory: MemoryValue, place: torch.device | None, log: Callable[[str], None], *, keep: bool
) -> None:
    """Quantize the weights, or keep them as `matmul` multiplies them, on a device (None: where they lie). 8-bit numbers of ComfyUI's stay
    what they are. `keep`: see `quantize`."""
    if memory.matmul == "off":
        quantize(denoiser.module, memory.quantize, denoiser.compute_dtype, place, keep=keep)
    else:
        use_products(denoiser.module, memory.matmul, denoiser.compute_dtype, place, codes_of)
    if place is not None:
        denoiser.module.to(place)  # what is not packed
    log(f"quantized to {memory.packing}: an extra copy of {stored_bytes(denoiser.module):,} bytes")
