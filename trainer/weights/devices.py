"""Devices and dtypes, and mixed precision, which torch has not for its meta device, on which runs are rehearsed."""

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

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


def give_back() -> None:
    """Free what nothing holds any more, also what torch keeps of a GPU for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_remedy() -> str:
    """The end of an error message about GPU memory."""
    return 'set memory.gradient_checkpointing = true and memory.checkpoint_offload = true, or memory.on_oom = "adapt", lower data.resolution or training.batch_size, set memory.base = "stream", or model.quantize = "int8"'


PRODUCTS = {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d"}  # fmt: skip
"""Names of the functions that autocast has compute in the lower precision, as far as adapters call them."""


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which products on a device are made in `dtype`; None: in that of their factors, whatever is around it."""
    if device.type == "meta":
        return _OnShapes(dtype)
    return torch.autocast(device.type, enabled=False) if dtype is None else torch.autocast(device.type, dtype)


class _OnShapes(TorchFunctionMode):
    """Of several the innermost one answers, and asks nobody else."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__name__", "") not in PRODUCTS or "out" in given:
            return func(*args, **given)
        if self.dtype is not None:
            args, given = tree_map_only(Tensor, self._cast, (args, given))
        with torch._C.DisableTorchFunction():
            return func(*args, **given)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_meta and tensor.is_floating_point() else tensor
