"""Which kernel computes the attention of a network of diffusers, by its attention dispatcher.

diffusers' own switch also sets a default for every model of the process; here only the network's own processors are told.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

AUTO = "auto"
KERNELS: dict[str, tuple[str, str]] = {
    "sdpa": ("native", ""),
    "math": ("_native_math", ""),
    "efficient": ("_native_efficient", ""),
    "cudnn": ("_native_cudnn", ""),
    "flash": ("flash", "flash_attn"),
    "flash3": ("_flash_3", "flash_attn_interface"),
    "xformers": ("xformers", "xformers"),
}
"""{our name: (diffusers' name, module of the library that has it, "" for torch itself)}."""
ON_CPU = ("sdpa", "math")


def available(device: torch.device) -> list[str]:
    """The kernels that can be chosen here."""
    return [
        name
        for name, (_, library) in KERNELS.items()
        if (name in ON_CPU or device.type == "cuda") and (not library or find_spec(library) is not None)
    ]


def check_attention(name: str, network: nn.Module, device: torch.device, what: str) -> None:
    """Raise ConfigError for a kernel that is not to be had here, or a network that leaves no choice. `what` names the model."""
    if name == AUTO:
        return
    here = available(device)
    if name not in here:
        library = KERNELS[name][1]
        reason = f"it needs the library {library}" if library and find_spec(library) is None else "it needs a CUDA GPU"
        raise ConfigError(f"model.attention = {name!r}: {reason}; use auto, {' or '.join(here)}")
    if not _processors(network):
        raise ConfigError(
            f"model.attention = {name!r} would do nothing: diffusers gives {what} no choice of attention, it is torch's (sdpa); leave it out"
        )


def use_attention(network: nn.Module, name: str) -> None:
    """Let a network compute its attention with this kernel. One that meets a mask which it cannot take raises ConfigError when it runs."""
    if name == AUTO:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName

    backend = AttentionBackendName(KERNELS[name][0])
    for processor in _processors(network):
        processor._attention_backend = backend
    network.forward = _explaining(network.forward, name)


def _processors(network: nn.Module) -> list[Any]:
    found = (getattr(part, "processor", None) for part in network.modules())
    return [processor for processor in found if hasattr(processor, "_attention_backend")]


def _explaining(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The forward pass, with an error of ours where the kernel refuses a mask."""

    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except (ValueError, NotImplementedError) as error:
            if "mask" not in str(error):
                raise
            raise ConfigError(
                f"model.attention = {name!r}: this model masks its attention, which that kernel cannot do ({error}); use sdpa"
            ) from error

    return explained
