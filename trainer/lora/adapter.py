"""PEFT adapters on a frozen network: injected without touching torch's global generator, always fp32, seeded by name.

PEFT layers are made on the meta device (a thread-local switch) and then filled here: so their numbers depend on the
seed and the module's path alone, and no random number of any other thread is used up.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choices import ADAPTERS
from ..config.run import NetworkConfig
from ..errors import ConfigError
from ..seeding import StepKey, generator
from ..weights.frozen import dense

NAME = "default"
"""PEFT's name of the one adapter."""


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (seed, step, micro-batch, module); the same again when recomputed."""

    def __init__(self, probability: float, path: str) -> None:
        super().__init__()
        self.probability, self.path = probability, path
        self.draw: StepKey | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.draw is None:
            return x
        source = generator(self.draw.seed, "dropout", self.draw.step, self.draw.micro_batch, self.path, device=x.device)
        keep = torch.rand(x.shape, generator=source, device=x.device) >= self.probability
        return x * keep / (1 - self.probability)


@dataclass(kw_only=True)
class Adapter:
    """The trainable part of a network."""

    root: nn.Module
    layers: dict[str, Any]
    """{module path: PEFT layer}."""
    network: NetworkConfig

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{path}|{name}": p for path, layer in self.layers.items() for name, p in layer_parameters(layer).items()
        }

    @cached_property
    def _dropouts(self) -> list[SeededDropout]:
        return [part for layer in self.layers.values() for part in layer.modules() if isinstance(part, SeededDropout)]

    def parameters(self) -> dict[str, nn.Parameter]:
        """{"module path|tensor": parameter}, in a fixed order."""
        return self._parameters

    def set_draw(self, draw: StepKey | None) -> None:
        """Switch dropout on for one forward and backward pass, or off."""
        for dropout in self._dropouts:
            dropout.draw = draw

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone, for the time of the block."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, on: bool) -> None:
        for layer in self.layers.values():
            layer._disable_adapters = not on  # PEFT's own switch also resets requires_grad

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy values in, by the names of `parameters()`. Raises ConfigError unless names and shapes agree."""
        mine = self.parameters()
        if mine.keys() != tensors.keys():
            odd = sorted(mine.keys() ^ tensors.keys())
            raise ConfigError(
                f"the adapter's tensors differ from this network's in {len(odd)} names, first {odd[0]}: use the same kind and targets"
            )
        for name, parameter in mine.items():
            if parameter.shape != tensors[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(tensors[name].shape)}, this network's {tuple(parameter.shape)}: use the same rank"
                )
            parameter.copy_(tensors[name])

    def eject(self) -> None:
        """Put the plain modules back."""
        for path, layer in self.layers.items():
            _set_module(self.root, path, layer.get_base_layer())


def inject(
    root: nn.Module, paths: list[str], network: NetworkConfig, *, seed: int, compute_dtype: torch.dtype | None = None
) -> Adapter:
    """Put an adapter on each module of `paths`. Everything else is frozen. B = 0: the output does not change."""
    from peft import inject_adapter_in_model

    root.requires_grad_(False)
    with torch.device("meta"), _split_weights_as_shapes(root, paths):
        inject_adapter_in_model(peft_config(network, paths), root, adapter_name=NAME)
    layers: dict[str, Any] = {path: root.get_submodule(path) for path in paths}
    for path, layer in layers.items():
        _materialise(path, layer, seed)
        if NAME in getattr(layer, "lora_magnitude_vector", ()):
            layer.lora_magnitude_vector[NAME].forward = partial(_dora, layer)
        if network.dropout and hasattr(layer, "lora_dropout"):
            layer.lora_dropout[NAME] = SeededDropout(network.dropout, path)
        # PEFT's LoHa and LoKr ask torch's global generator in every forward pass of training whether to skip the module.
        layer.train(hasattr(layer, "lora_A"))
        if is_plain_lora(layer) and getattr(layer.get_base_layer(), "groups", 1) == 1:
            layer.forward = partial(_lora, layer, compute_dtype)
        elif compute_dtype is not None and compute_dtype != torch.float32:
            _compute_in(layer, compute_dtype)
    adapter = Adapter(root=root, layers=layers, network=network)
    _assert_only_adapter_trains(adapter)
    return adapter


@contextmanager
def _split_weights_as_shapes(root: nn.Module, paths: list[str]) -> Iterator[None]:
    """Weights that are split over several processes, as meta tensors for the time of the block: PEFT adds to those of DoRA."""
    modules = [root.get_submodule(path) for path in paths]
    split = [(part, part._parameters["weight"]) for part in modules if hasattr(part.weight, "full_tensor")]
    for part, weight in split:
        assert weight is not None
        part._parameters["weight"] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device="meta"), False)
    try:
        yield
    finally:
        for part, weight in split:
            part._parameters["weight"] = weight


def _lora(layer: Any, dtype: torch.dtype | None, x: Tensor) -> Tensor:
    """W x + (s B) A x (arXiv 2106.09685), computed in `dtype`, or in the format of x.

    In place of PEFT's own, which multiplies the whole output by the scale and writes it twice more: here the scale goes
    to the small matrix, and the product is added as it is made.
    """
    x = x if dtype is None else x.to(dtype)
    base: Tensor = layer.get_base_layer()(x)
    if layer.disable_adapters:
        return base
    down = layer.lora_A[NAME].weight.to(x.dtype)
    up = (layer.lora_B[NAME].weight * layer.scaling[NAME]).to(x.dtype)
    x = layer.lora_dropout[NAME](x)
    if down.ndim == 2:
        hidden = F.linear(x, down).flatten(0, -2)
        return torch.addmm(base.flatten(0, -2), hidden, up.t()).view(base.shape)
    shape = layer.get_base_layer()
    return base + F.conv2d(F.conv2d(x, down, None, shape.stride, shape.padding, shape.dilation), up)


def _dora(
    layer: Any,
    x: Tensor,
    *,
    lora_A: Any,
    lora_B: Any,
    scaling: float,
    base_layer: Any,
    base_result: Any = None,
    **rest: Any,
) -> Tensor:
    """What DoRA adds to the base's output: (m / |W + dW| - 1) W x + m / |W + dW| dW x (arXiv 2402.09353, 4.3).

    In place of PEFT's own, which takes the norm in the activations' format and from the weight as it is stored. In
    bfloat16 that norm is 0.2 % off, more than many updates are, and nothing in the saved file could say so; scaled and
    packed weights it reads wrongly or not at all. Here the base is asked for its output, in whatever format it is kept.
    """
    shape = (-1, *[1] * (layer.lora_A[NAME].weight.ndim - 2))  # a convolution's channels are not its last dimension
    gain = (layer.lora_magnitude_vector[NAME].weight.flatten() / _patched_norms(layer)).reshape(shape)
    base = base_layer(x) if base_result is None else base_result
    if base_layer.bias is not None:
        base = base - base_layer.bias.to(base.dtype).reshape(shape)
    return (gain - 1) * base + gain * (lora_B(lora_A(x)) * scaling)


@torch.no_grad()
def _patched_norms(layer: Any) -> Tensor:
    """|W + dW| of each output row, fp32. A constant for the gradient, as in the paper."""
    down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    with torch.autocast(down.device.type, enabled=False):
        change = up.flatten(1) @ down.flatten(1) * layer.scaling[NAME]
        return torch.linalg.vector_norm(dense_weight(layer.get_base_layer()).flatten(1) + change, dim=1)


def is_plain_lora(layer: Any) -> bool:
    """Whether a PEFT layer computes W x + s B A x and nothing else."""
    return hasattr(layer, "lora_A") and NAME not in layer.lora_magnitude_vector


def peft_config(network: NetworkConfig, paths: list[str]) -> Any:
    """PEFT's configuration of the kind that `network` names, for the modules of `paths`."""
    alpha = network.rank if network.alpha is None else network.alpha
    pattern = "|".join(re.escape(path) for path in paths)  # PEFT matches the whole path
    return ADAPTERS[network.kind].load()(network, alpha, pattern)


def lora_config(network: NetworkConfig, alpha: float, pattern: str, *, use_dora: bool = False) -> Any:
    """LoRA (arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732) if `network` asks for it."""
    import peft

    return peft.LoraConfig(
        r=network.rank, target_modules=pattern, lora_alpha=alpha, lora_dropout=network.dropout,
        use_rslora=network.rslora, use_dora=use_dora,
    )  # fmt: skip


def dora_config(network: NetworkConfig, alpha: float, pattern: str) -> Any:
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    return lora_config(network, alpha, pattern, use_dora=True)


def loha_config(network: NetworkConfig, alpha: float, pattern: str) -> Any:
    """Hadamard product of two low-rank matrices (arXiv 2108.06098, 2309.14859)."""
    import peft

    return peft.LoHaConfig(r=network.rank, target_modules=pattern, alpha=alpha)


def lokr_config(network: NetworkConfig, alpha: float, pattern: str) -> Any:
    """Kronecker product (arXiv 2212.10650, 2309.14859)."""
    import peft

    return peft.LoKrConfig(r=network.rank, target_modules=pattern, alpha=alpha, decompose_factor=network.lokr_factor)


def layer_parameters(layer: Any) -> dict[str, nn.Parameter]:
    """{tensor name without the adapter's name: parameter} of one PEFT layer, sorted."""
    found = {}
    for group in layer.adapter_layer_names:
        for name, parameter in getattr(layer, group).named_parameters():
            # lora_A["default"].weight, lora_magnitude_vector["default"].weight, lokr_w1["default"]
            found[group + name.removeprefix(NAME)] = parameter
    return dict(sorted(found.items()))


@torch.no_grad()
def _materialise(path: str, layer: Any, seed: int) -> None:
    """Replace the meta parameters by fp32 ones with their initial values (algorithms D11)."""
    base = layer.get_base_layer()
    for part in layer.modules():
        if isinstance(part, nn.Conv2d) and part is not base:
            part.__class__ = nn.Conv2d  # PEFT copies the base's class, and a frozen layer passes its weight no gradient
    device = base.weight.device
    for group in layer.adapter_layer_names:
        holder = getattr(layer, group)
        for name, parameter in list(holder.named_parameters()):
            value = _initial(group, parameter, base, generator(seed, "init", path, group))
            owner, _, leaf = name.rpartition(".")
            target = holder.get_submodule(owner) if owner else holder
            setattr(target, leaf, nn.Parameter(value.to(device))) if owner else holder.update(
                {leaf: nn.Parameter(value.to(device))}
            )


def _initial(group: str, like: nn.Parameter, base: nn.Module, source: torch.Generator) -> Tensor:
    shape = tuple(like.shape)
    if group == "lora_magnitude_vector":
        return row_norms(base).reshape(shape)
    if group in ("lora_B", "hada_w2_a", "lokr_w2", "lokr_w2_b"):
        return torch.zeros(shape)
    if group.startswith("hada"):  # LyCORIS: N(0, 1), and N(0, 0.1) for the first factor
        return torch.randn(shape, generator=source) * (0.1 if group == "hada_w1_a" else 1.0)
    bound = 1 / math.sqrt(math.prod(shape[1:]))  # kaiming_uniform with a = sqrt(5)
    return (torch.rand(shape, generator=source) * 2 - 1) * bound


def dense_weight(base: Any) -> Tensor:
    """The frozen weight of a Linear or Conv2d as fp32, unpacked and scaled where it is stored so."""
    return dense(base.weight.detach(), torch.float32, getattr(base, "scale", None))


def row_norms(base: nn.Module) -> Tensor:
    """L2 norm of each output row of the dequantised weight, fp32, on the CPU."""
    return torch.linalg.vector_norm(dense_weight(base).flatten(1), dim=1).cpu()


def _compute_in(layer: Any, dtype: torch.dtype) -> None:
    """Run the adapter's matrices in the network's own precision; their parameters stay fp32."""
    plain: Callable[..., Tensor] = layer.forward
    layer.cast_input_dtype_enabled = False

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return plain(x, *args, **kwargs)

    layer.forward = forward


def _set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, leaf, module)


def _assert_only_adapter_trains(adapter: Adapter) -> None:
    mine = {id(parameter) for parameter in adapter.parameters().values()}
    for name, parameter in adapter.root.named_parameters():
        assert parameter.requires_grad == (id(parameter) in mine), f"{name} trains: {parameter.requires_grad}"
        assert id(parameter) not in mine or parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
