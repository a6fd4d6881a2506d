"""Devices and dtypes."""

import torch

from ..errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that the setting model.device names; auto is CUDA, MPS or the CPU. Raises ConfigError if it does not exist here."""
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
    """The dtype in which the frozen base model is stored; None keeps the dtype of its file."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    return DTYPES[name]


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype in which the base model computes."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def use_device(device: torch.device) -> None:
    """Make a device the current one of this thread: some GPU kernels are launched on it, wherever their tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def give_to_driver(device: torch.device) -> None:
    """Memory of a GPU that torch keeps for later tensors goes back to its driver, where others than torch find it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


def used_memory(device: torch.device) -> dict[str, float]:
    """Memory in GB (10^9 bytes) by what it is: {"vram_gb": the most that tensors took on the GPU since this was asked last}; on MPS what
    they take now; on a CPU {"ram_gb": what the whole process holds in RAM}. {} for other devices.
    """
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"vram_gb": round(most / 1e9, 3)}
    if device.type == "mps":
        return {"vram_gb": round(torch.mps.current_allocated_memory() / 1e9, 3)}
    if device.type == "cpu":
        import psutil

        return {"ram_gb": round(psutil.Process().memory_info().rss / 1e9, 3)}
    return {}


def out_of_memory(error: BaseException) -> str:
    """Which memory was too small for what raised this error: "GPU memory", "memory"; "" for any other error."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "GPU memory"
    is_cpu = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
    return "memory" if is_cpu else ""


def out_of_memory_remedy() -> str:
    """The end of an error message about GPU memory."""
    return 'set memory.gradient_checkpointing = true and memory.checkpoint_offload = true, or memory.on_oom = "adapt", lower data.resolution or training.batch_size, set memory.base = "stream", or model.quantize = "int8"'
