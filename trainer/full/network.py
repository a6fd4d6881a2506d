"""The network whose own weights are trained, in the place of an adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.network import WHOLE, NetworkConfig
from ..diffusion.denoiser import Targets
from ..errors import ConfigError
from ..lora.adapter import Adapter, inject
from ..lora.targets import matching, resolve_targets
from ..seeding import StepKey
from ..weights.frozen import is_quantized_tensor

TRAINABLE = (torch.float32, torch.bfloat16)


@dataclass(kw_only=True)
class WholeNetwork(Adapter):
    """Weights of the network itself, as what is trained. There is no base beside it that could be switched back to."""

    trained: dict[str, nn.Parameter]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights as {"module path|name": parameter}."""
        return self.trained

    def set_draw(self, draw: StepKey | None) -> None:
        """Nothing of it is drawn."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Raises ConfigError: the base model's own weights are gone."""
        raise ConfigError(
            f"network.kind = {WHOLE!r} trains the base model itself, so that nothing can be compared with it"
        )
        yield

    @contextmanager
    def holding(self, values: dict[str, Tensor] | None) -> Iterator[None]:
        """As an adapter's; the current weights wait in RAM, for there may be no room for a second set on the device."""
        if values is None:
            yield
            return
        current = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trained.items()}
        self.load(values)
        try:
            yield
        finally:
            self.load(current)


def whole_targets(root: nn.Module, presets: Mapping[str, Targets], network: NetworkConfig) -> list[str]:
    """Sorted paths of the modules that a full fine-tune trains: all with weights of their own ("" is the network itself), or those of a
    preset or a pattern. Raises ConfigError where nothing is left."""
    if network.target_modules != NetworkConfig.target_modules:
        return resolve_targets(root, presets, network.target_modules, network.exclude_modules)
    found = [path for path, part in root.named_modules() if next(part.parameters(recurse=False), None) is not None]
    left_out = matching("network.exclude_modules", network.exclude_modules, found) if network.exclude_modules else set()
    kept = sorted(path for path in found if path not in left_out)
    if not kept:
        raise ConfigError(
            f"network.exclude_modules = {network.exclude_modules!r} leaves nothing to train: make it narrower"
        )
    return kept


def trained_part(
    root: nn.Module, paths: list[str], network: NetworkConfig, *, seed: int, compute_dtype: torch.dtype | None = None
) -> Adapter:
    """What is trained of a network: an adapter on each module of `paths`, or these modules themselves. All else is frozen."""
    if network.kind != WHOLE:
        return inject(root, paths, network, seed=seed, compute_dtype=compute_dtype)
    root.requires_grad_(False)
    trained: dict[str, nn.Parameter] = {}
    for path in paths:
        part = root.get_submodule(path)
        for name, parameter in list(part.named_parameters(recurse=False)):
            trained[f"{path}|{name}"] = part._parameters[name] = _own(f"{path}.{name}", parameter)
    return WholeNetwork(root=root, layers={}, network=network, trained=trained)


def _own(name: str, parameter: nn.Parameter) -> nn.Parameter:
    """A parameter that trains, in memory of its own: those of a file are maps of it, or rows of a larger one.

    Raises ConfigError for a dtype that cannot be trained.
    """
    if is_quantized_tensor(parameter) or parameter.dtype not in TRAINABLE:
        dtype = str(parameter.dtype).removeprefix("torch.")
        raise ConfigError(
            f"network.kind = {WHOLE!r}: {name} is {dtype}, and weights train in bfloat16 or float32: set model.dtype to one of them"
        )
    return nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format), requires_grad=True)


def our_key(parameter: str) -> str:
    """The key in a state dict of a parameter that is named as `Adapter.parameters` does."""
    path, _, name = parameter.partition("|")
    return f"{path}.{name}" if path else name
