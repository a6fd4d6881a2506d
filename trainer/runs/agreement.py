"""The last check of a LoRA file: that a host computes from it what was trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import RunError
from ..lora.adapter import Adapter
from ..lora.state_dict import max_relative_error
from .session import Backend

AGREEMENT = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""Largest relative difference allowed between what a saved file does in a host and what was trained."""


def checked_error(
    backend: Backend,
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    dtype: torch.dtype,
) -> float:
    """Largest relative error of what a host computes from the file. Raises RunError above what rounding explains."""
    read = backend.layout.read(tensors) if backend.layout else tensors
    error, where = max_relative_error(adapter, backend.denoiser.file_key, read, average, backend.arithmetic)
    if not error <= AGREEMENT[dtype]:
        raise RunError(
            f"the LoRA file would act differently than it was trained: {error:.2e} in {where}; "
            "set output.dtype = 'float32' and report this"
        )
    return error
