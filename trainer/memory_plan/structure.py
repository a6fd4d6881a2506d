"""A network that is loaded, without its weights: for a rehearsal on shapes that leaves the network itself alone."""

from typing import Any

import torch
from torch import Tensor, nn

from ..weights.frozen import is_quantized_tensor
from .shapes_only import META


def structure_of(module: nn.Module) -> nn.Module:
    """Copies of all modules with the same classes and attributes, and shapes in place of floating tensors.

    A quantized weight becomes one of a byte per number, which is cast when it is used, as the quantized one is.
    """
    return _Copies().of(module)


class _Copies:
    """Each module is copied once, wherever it is named."""

    def __init__(self) -> None:
        self._made: dict[int, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        if id(module) in self._made:
            return self._made[id(module)]
        made = self._made[id(module)] = type(module).__new__(type(module))
        attributes = vars(module)
        groups = {name: attributes[name] for name in ("_parameters", "_buffers", "_modules")}
        vars(made).update({name: self._value(value) for name, value in attributes.items() if name not in groups})
        made._parameters = {
            name: None if value is None else nn.Parameter(_shape(value), requires_grad=False)
            for name, value in groups["_parameters"].items()
        }
        made._buffers = {name: None if value is None else _shape(value) for name, value in groups["_buffers"].items()}
        made._modules = {name: None if child is None else self.of(child) for name, child in groups["_modules"].items()}
        return made

    def _value(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self.of(value)
        if isinstance(value, Tensor):
            return _shape(value)
        if type(value) in (list, tuple):
            return type(value)(self._value(item) for item in value)
        return value


def _shape(tensor: Tensor) -> Tensor:
    if is_quantized_tensor(tensor):
        return torch.empty(tensor.shape, dtype=torch.float8_e4m3fn, device=META)
    if not tensor.is_floating_point():
        return tensor.detach()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
