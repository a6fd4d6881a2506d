"""Devices and number formats."""

import torch

from ..errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Raises ConfigError for a device this machine does not have."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"model.device = {name!r} is not available here: use auto or cpu ({str(error).splitlines()[0]})"
            ) from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def storage_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Number format of the frozen base; None keeps the file's own."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return DTYPES[name]


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Number format of the arithmetic."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def use_device(device: torch.device) -> None:
    """Make it this thread's current device: some GPU kernels launch on that one, wherever their tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def out_of_memory_remedy() -> str:
    return 'set memory.gradient_checkpointing = true, lower data.resolution or training.batch_size, or set model.quantize = "int8"'
