"""PEFT adapters on a frozen base model: always fp32, and initialised without torch's global generator.

PEFT layers are created on the meta device (a thread-local switch) and filled here. Their values therefore depend on the seed
and the module's path alone, and no other thread's random numbers are consumed.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..choices import ADAPTERS
from ..config.run import NetworkConfig
from ..errors import ConfigError
from ..seeding import StepKey, generator
from ..weights.changes import add_low_rank, changes_of
from ..weights.frozen import dense, stored_weight

NAME = "default"
"""PEFT's name of the only adapter."""


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (seed, step, micro-batch, module), so that recomputed activations get the same mask.

    Without a `draw` it is the identity.
    """

    def __init__(self, probability: float, path: str) -> None:
        super().__init__()
        self.probability, self.path = probability, path
        self.draw: StepKey | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x with dropped elements set to 0 and the others divided by 1 - probability."""
        if self.draw is None:
            return x
        source = generator(self.draw.seed, "dropout", self.draw.step, self.draw.micro_batch, self.path, device=x.device)
        keep = torch.rand(x.shape, generator=source, device=x.device) >= self.probability
        return x * keep / (1 - self.probability)


class PeftLayer(Protocol):
    """What is used of PEFT's layers, which have no type annotations."""

    forward: Callable[..., Tensor]
    scaling: dict[str, float]
    disable_adapters: bool
    _disable_adapters: bool
    cast_input_dtype_enabled: bool
    adapter_layer_names: Sequence[str]
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_dropout: nn.ModuleDict
    lora_magnitude_vector: nn.ModuleDict

    def get_base_layer(self) -> nn.Module:
        """The frozen Linear or Conv2d."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules in the layer."""
        ...

    def train(self, mode: bool) -> object:
        """Switch dropout."""
        ...


def _weight(part: nn.ModuleDict) -> Tensor:
    """The adapter's matrix in a part of a PEFT layer."""
    return cast(Tensor, part[NAME].weight)


@dataclass(kw_only=True)
class Adapter:
    """The trainable part of a network."""

    root: nn.Module
    """The network with the adapter in it."""
    layers: dict[str, PeftLayer]
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
        """The trainable parameters as {"module path|tensor": parameter}, in a fixed order."""
        return self._parameters

    def set_draw(self, draw: StepKey | None) -> None:
        """Set the position in the run that dropout depends on, for one forward and backward pass; None switches dropout off."""
        for dropout in self._dropouts:
            dropout.draw = draw

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which the network computes without the adapter."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, on: bool) -> None:
        for layer in self.layers.values():
            layer._disable_adapters = not on  # PEFT's own switch also resets requires_grad

    @contextmanager
    def holding(self, values: dict[str, Tensor] | None) -> Iterator[None]:
        """A context in which the parameters have other values, by the names of `parameters()`; None leaves them as they are."""
        if values is None:
            yield
            return
        current = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        self.load(values)
        try:
            yield
        finally:
            self.load(current)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy values into the parameters, by the names of `parameters()`. Raises ConfigError unless names and shapes agree."""
        mine = self.parameters()
        if mine.keys() != tensors.keys():
            odd = sorted(mine.keys() ^ tensors.keys())
            raise ConfigError(
                f"the adapter's tensors differ from this network's in {len(odd)} names, first {odd[0]}: use the same network.kind and target_modules"
            )
        for name, parameter in mine.items():
            if parameter.shape != tensors[name].shape:
                raise ConfigError(
                    f"{name} has shape {tuple(tensors[name].shape)}, this network's {tuple(parameter.shape)}: use the same rank"
                )
            parameter.copy_(tensors[name])


def inject(
    root: nn.Module, paths: list[str], network: NetworkConfig, *, seed: int, compute_dtype: torch.dtype | None = None
) -> Adapter:
    """Put an adapter on each module of `paths` and freeze everything else. B = 0, so the network's output does not change.

    `compute_dtype` is the dtype of the adapter's matrix products (None: that of their input); its parameters are fp32.
    """
    from peft import inject_adapter_in_model

    root.requires_grad_(False)
    with torch.device("meta"), _split_weights_as_shapes(root, paths):
        inject_adapter_in_model(peft_config(network, paths), root, adapter_name=NAME)
    layers = {path: cast(PeftLayer, root.get_submodule(path)) for path in paths}
    for path, layer in layers.items():
        _materialise(path, layer, seed)
        if NAME in getattr(layer, "lora_magnitude_vector", ()):
            layer.lora_magnitude_vector[NAME].forward = partial(_dora, layer)
        if network.dropout and hasattr(layer, "lora_dropout"):
            layer.lora_dropout[NAME] = SeededDropout(network.dropout, path)
        # In training mode PEFT's LoHa and LoKr draw from torch's global generator whether to skip the module.
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
    """A context in which sharded weights are meta tensors, because PEFT does arithmetic on the weights of DoRA layers."""
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


def _lora(layer: PeftLayer, dtype: torch.dtype | None, x: Tensor) -> Tensor:
    """The LoRA forward pass W x + (s B) A x (arXiv 2106.09685), computed in `dtype`, or in the dtype of x.

    It replaces PEFT's, which multiplies the whole output by the scale and writes it twice more. Here the scale is applied to
    the small matrix, and the product is accumulated into the output.
    """
    x = x if dtype is None else x.to(dtype)
    base_layer = layer.get_base_layer()
    base: Tensor = base_layer(x)
    if layer.disable_adapters:
        return base
    down = _weight(layer.lora_A).to(x.dtype)
    up = (_weight(layer.lora_B) * layer.scaling[NAME]).to(x.dtype)
    return add_low_rank(base, base_layer, layer.lora_dropout[NAME](x), down, up)


def _dora(
    layer: PeftLayer,
    x: Tensor,
    *,
    lora_A: nn.Module,
    lora_B: nn.Module,
    scaling: float,
    base_layer: nn.Linear | nn.Conv2d,
    base_result: Tensor | None = None,
    **rest: object,
) -> Tensor:
    """DoRA's change of the output: (m / |W + dW| - 1) W x + m / |W + dW| dW x (arXiv 2402.09353, section 4.3).

    It replaces PEFT's, which computes the norm in the dtype of the activations and from the weight as it is stored. In
    bfloat16 that norm is 0.2 % off, more than many updates, which no saved file could express, and it is wrong for scaled
    and quantized weights. `rest` are further arguments of PEFT that are not needed.
    """
    shape = (-1, *[1] * (_weight(layer.lora_A).ndim - 2))  # the channels of a convolution are not its last dimension
    gain = (_weight(layer.lora_magnitude_vector).flatten() / _patched_norms(layer)).reshape(shape)
    base: Tensor = base_layer(x) if base_result is None else base_result
    if base_layer.bias is not None:
        base = base - base_layer.bias.to(base.dtype).reshape(shape)
    change: Tensor = lora_B(lora_A(x)) * scaling
    return (gain - 1) * base + gain * change


@torch.no_grad()
def _patched_norms(layer: PeftLayer) -> Tensor:
    """|W + dW| of each output row (O,), fp32. It is a constant for the gradient, as in the paper."""
    down, up = _weight(layer.lora_A), _weight(layer.lora_B)
    with torch.autocast(down.device.type, enabled=False):
        change = up.flatten(1) @ down.flatten(1) * layer.scaling[NAME]
        return torch.linalg.vector_norm(dense_weight(layer.get_base_layer()).flatten(1) + change, dim=1)


def is_plain_lora(layer: PeftLayer) -> bool:
    """Whether a PEFT layer computes W x + s B A x and nothing else."""
    return hasattr(layer, "lora_A") and NAME not in layer.lora_magnitude_vector


def peft_config(network: NetworkConfig, paths: list[str]) -> object:
    """PEFT's configuration of the kind that `network` names, for the modules of `paths`."""
    alpha = network.rank if network.alpha is None else network.alpha
    pattern = "|".join(re.escape(path) for path in paths)  # PEFT matches the whole path
    return ADAPTERS[network.kind].load()(network, alpha, pattern)


def lora_config(network: NetworkConfig, alpha: float, pattern: str, *, use_dora: bool = False) -> object:
    """LoRA (arXiv 2106.09685), with rsLoRA's scale (arXiv 2312.03732) if `network` asks for it."""
    import peft

    return peft.LoraConfig(
        r=network.rank, target_modules=pattern, lora_alpha=alpha, lora_dropout=network.dropout,
        use_rslora=network.rslora, use_dora=use_dora,
    )  # fmt: skip


def dora_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Weight-decomposed LoRA (arXiv 2402.09353)."""
    return lora_config(network, alpha, pattern, use_dora=True)


def loha_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Hadamard product of two low-rank matrices (arXiv 2108.06098, 2309.14859)."""
    import peft

    return peft.LoHaConfig(r=network.rank, target_modules=pattern, alpha=alpha)


def lokr_config(network: NetworkConfig, alpha: float, pattern: str) -> object:
    """Kronecker product (arXiv 2212.10650, 2309.14859)."""
    import peft

    return peft.LoKrConfig(r=network.rank, target_modules=pattern, alpha=alpha, decompose_factor=network.lokr_factor)


def layer_parameters(layer: PeftLayer) -> dict[str, nn.Parameter]:
    """Returns {tensor name without the adapter's name: parameter} of one PEFT layer, sorted by name."""
    parameters = {}
    for group in layer.adapter_layer_names:
        for name, parameter in getattr(layer, group).named_parameters():
            # lora_A["default"].weight, lora_magnitude_vector["default"].weight, lokr_w1["default"]
            parameters[group + name.removeprefix(NAME)] = parameter
    return dict(sorted(parameters.items()))


@torch.no_grad()
def _materialise(path: str, layer: PeftLayer, seed: int) -> None:
    """Replace the meta parameters of a layer by fp32 ones with their initial values."""
    base = layer.get_base_layer()
    for part in layer.modules():
        if isinstance(part, nn.Conv2d) and part is not base:
            part.__class__ = (
                nn.Conv2d
            )  # PEFT copies the base layer's class, and a FrozenConv2d gives its weight no gradient
    device = stored_weight(base).device
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
    """The initial values of a parameter: LoRA as in PEFT, LoHa and LoKr as in LyCORIS. The change of the weight is zero."""
    shape = tuple(like.shape)
    if group == "lora_magnitude_vector":
        return row_norms(base).reshape(shape)
    if group in ("lora_B", "hada_w2_a", "lokr_w2", "lokr_w2_b"):
        return torch.zeros(shape)
    if group.startswith("hada"):  # LyCORIS: N(0, 1), and N(0, 0.1) for the first factor
        return torch.randn(shape, generator=source) * (0.1 if group == "hada_w1_a" else 1.0)
    bound = 1 / math.sqrt(math.prod(shape[1:]))  # kaiming_uniform with a = sqrt(5)
    return (torch.rand(shape, generator=source) * 2 - 1) * bound


def dense_weight(base: nn.Module) -> Tensor:
    """The frozen weight that a Linear or Conv2d computes with, as fp32: dequantized, multiplied by its scale if it has one, and
    with the changes of base LoRAs."""
    weight = own_weight(base)
    for change in changes_of(base):
        weight = weight + change.dense()
    return weight


def own_weight(base: nn.Module) -> Tensor:
    """The same without base LoRAs."""
    return dense(stored_weight(base), torch.float32, getattr(base, "scale", None)).detach()


def row_norms(base: nn.Module) -> Tensor:
    """L2 norm of each output row of the dense weight (O,), fp32, on the CPU."""
    return torch.linalg.vector_norm(dense_weight(base).flatten(1), dim=1).cpu()


def _compute_in(layer: PeftLayer, dtype: torch.dtype) -> None:
    """Make the adapter's matrix products use the dtype of the base model. Its parameters stay fp32."""
    plain = layer.forward
    layer.cast_input_dtype_enabled = False

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return plain(x, *args, **kwargs)

    layer.forward = forward


def _assert_only_adapter_trains(adapter: Adapter) -> None:
    mine = {id(parameter) for parameter in adapter.parameters().values()}
    for name, parameter in adapter.root.named_parameters():
        assert parameter.requires_grad == (id(parameter) in mine), f"{name} trains: {parameter.requires_grad}"
        assert id(parameter) not in mine or parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
