"""PEFT adapters on a frozen base model: always fp32, and initialised without torch's global generator.

PEFT layers are created on the meta device (a thread-local switch) and filled here. Their values therefore depend on the seed
and the module's path alone, and no other thread's random numbers are consumed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor, nn

from ..config.network import LOFTQ
from ..config.run import NetworkConfig
from ..errors import ConfigError
from ..seeding import StepKey
from ..weights.changes import add_low_rank
from ..weights.devices import autocast
from ..weights.quantize import drop_originals
from .adapted import NAME, PeftLayer, dense_weight, is_plain_lora, layer_parameters, matrix
from .dropout import NestedRanks, RankDropout, SeededDropout, dropped_modules
from .initial import materialise, with_start
from .kinds.configs import put_layers
from .kinds.low_rank import frozen_of, lora_output
from .kinds.own import OwnLayer

RANKS = "ranks"
"""Our name of the dropout of whole ranks, beside PEFT's of inputs."""
NESTED = "nested"
"""Our name of DyLoRA's choice of ranks."""


@dataclass(kw_only=True)
class Adapter:
    """The trainable part of a network."""

    root: nn.Module
    """The network with the adapter in it."""
    layers: dict[str, PeftLayer]
    """{module path: PEFT layer}."""
    network: NetworkConfig
    _left_out: set[str] = field(default_factory=set)
    """Modules whose adapter takes no part in the forward pass that is drawn now."""

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
        if self.network.module_dropout:
            self._left_out = dropped_modules(list(self.layers), self.network.module_dropout, draw) if draw else set()
            self._enable(True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """A context in which the network computes without the adapter."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """A context in which the adapter's change counts this many times, as at that strength in a host. LoRA only."""
        if strength == 1:
            yield
            return
        usual = {path: layer.scaling[NAME] for path, layer in self.layers.items()}
        for path, layer in self.layers.items():
            layer.scaling[NAME] = strength * usual[path]
        try:
            yield
        finally:
            for path, layer in self.layers.items():
                layer.scaling[NAME] = usual[path]

    def _enable(self, on: bool) -> None:
        for path, layer in self.layers.items():
            layer._disable_adapters = not on or path in self._left_out  # PEFT's own switch also resets requires_grad

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
    def scale_norms(self, limit: float) -> int:
        """Scale both factors of each LoRA whose change of the weight has a larger Frobenius norm than `limit` down to it.

        Returns how many were scaled (sd-scripts' `apply_max_norm_regularization`).
        """
        scaled = torch.zeros(())
        for layer in self.layers.values():
            if isinstance(layer, OwnLayer):  # a norm
                continue
            down, up = matrix(layer.lora_A), matrix(layer.lora_B)
            inner = (up.flatten(1).T @ up.flatten(1)) * (down.flatten(1) @ down.flatten(1).T)
            norm = inner.sum().clamp_min(0).sqrt() * layer.scaling[NAME]  # |B A|^2 is the sum of (B^T B) o (A A^T)
            factor = (limit / norm.clamp_min(limit)).sqrt()
            down.mul_(factor)
            up.mul_(factor)
            scaled = scaled.to(norm.device) + (norm > limit)
        return int(scaled)

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
    root.requires_grad_(False)
    with torch.device("meta"), _split_weights_as_shapes(root, paths):
        put_layers(root, paths, network)
    layers = {path: cast(PeftLayer, root.get_submodule(path)) for path in paths}
    for path, layer in layers.items():
        materialise(path, layer, seed, network.init)
        if isinstance(layer, OwnLayer):
            layer.dtype = compute_dtype
            continue
        if NAME in getattr(layer, "lora_magnitude_vector", ()):
            layer.lora_magnitude_vector[NAME].forward = partial(_dora, layer)
        if network.dropout and hasattr(layer, "lora_dropout"):
            layer.lora_dropout[NAME] = SeededDropout(network.dropout, path)
        # In training mode PEFT's LoHa and LoKr draw from torch's global generator whether to skip the module.
        layer.train(hasattr(layer, "lora_A"))
        if is_plain_lora(layer) and getattr(layer.get_base_layer(), "groups", 1) == 1:
            if network.rank_dropout:
                is_conv = isinstance(layer.get_base_layer(), nn.Conv2d)
                layer.lora_dropout[RANKS] = RankDropout(network.rank_dropout, path, 1 if is_conv else -1)
            if network.dylora_unit:
                layer.lora_dropout[NESTED] = NestedRanks(network.dylora_unit, path, layer.r[NAME])
            layer.forward = partial(_lora, layer, compute_dtype, _is_direct(layer))
        else:
            _refuse_grouped(path, network)
            if compute_dtype is not None and compute_dtype != torch.float32:
                _compute_in(layer, compute_dtype)
    if network.init == LOFTQ:
        drop_originals(root)
        if not any(layer.start for layer in layers.values()):
            raise ConfigError(
                "network.init = 'loftq': none of these layers was quantized for the run, so nothing is known of what quantizing lost; give the base in its original numbers, or use another init"
            )
    adapter = Adapter(root=root, layers=layers, network=network)
    _assert_only_adapter_trains(adapter)
    return adapter


def _refuse_grouped(path: str, network: NetworkConfig) -> None:
    """Raise ConfigError for what a LoRA of a convolution with groups has not: it runs by PEFT's own forward."""
    for name in ("rank_dropout", "scale_weight_norms", "dylora_unit"):
        if getattr(network, name):
            raise ConfigError(
                f"network.{name}: {path} is a convolution with groups, which has none; name it in network.exclude_modules"
            )


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


def _lora(layer: PeftLayer, dtype: torch.dtype | None, is_direct: bool, x: Tensor) -> Tensor:
    """The LoRA forward pass W x + (s B) A x (arXiv 2106.09685), computed in `dtype`, or in the dtype of x.

    It replaces PEFT's, which multiplies the whole output by the scale and writes it twice more. Here the scale is applied to
    the small matrix, and the product is accumulated into the output. Where `is_direct`, autograd sees two functions (`kinds.low_rank`).
    """
    x = x if dtype is None else x.to(dtype)
    base_layer = layer._modules["base_layer"]
    if layer.disable_adapters:
        return cast(Tensor, base_layer(x))
    if is_direct and (frozen := frozen_of(base_layer, x)) is not None:
        return lora_output(frozen, x, matrix(layer.lora_A), matrix(layer.lora_B), layer.scaling[NAME])
    base: Tensor = base_layer(x)
    drops = dict(layer.lora_dropout.items())
    down, up = with_start(layer, matrix(layer.lora_A), matrix(layer.lora_B))
    if NESTED in drops:
        down, up = cast(NestedRanks, drops[NESTED]).cut(down, up)
    scale = layer.scaling[
        NAME
    ]  # 1 where alpha is the rank, as by default: then nothing is multiplied, forward and backward
    down, up = down.to(x.dtype), (up if scale == 1 else up * scale).to(x.dtype)
    between = drops.get(RANKS)
    return add_low_rank(base, base_layer, layer.lora_dropout[NAME](x), down, up, between)


def _is_direct(layer: PeftLayer) -> bool:
    """Whether nothing comes between x, A and B, and all of B A is LoRA's change."""
    return layer.start is None and len(layer.lora_dropout) == 1 and type(layer.lora_dropout[NAME]) is nn.Identity


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
    shape = (-1, *[1] * (matrix(layer.lora_A).ndim - 2))  # the channels of a convolution are not its last dimension
    gain = (matrix(layer.lora_magnitude_vector).flatten() / _patched_norms(layer)).reshape(shape)
    base: Tensor = base_layer(x) if base_result is None else base_result
    if base_layer.bias is not None:
        base = base - base_layer.bias.to(base.dtype).reshape(shape)
    change: Tensor = lora_B(lora_A(x)) * scaling
    return (gain - 1) * base + gain * change


@torch.no_grad()
def _patched_norms(layer: PeftLayer) -> Tensor:
    """|W + dW| of each output row (O,), fp32. It is a constant for the gradient, as in the paper."""
    down, up = matrix(layer.lora_A), matrix(layer.lora_B)
    with autocast(down.device, None):
        change = up.flatten(1) @ down.flatten(1) * layer.scaling[NAME]
        return torch.linalg.vector_norm(dense_weight(layer.get_base_layer()).flatten(1) + change, dim=1)


def _compute_in(layer: PeftLayer, dtype: torch.dtype) -> None:
    """Make the adapter's matrix products use the dtype of the base model. Its parameters stay fp32."""
    plain = layer.forward
    layer.cast_input_dtype_enabled = False

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        with autocast(x.device, dtype):
            return plain(x, *args, **kwargs)

    layer.forward = forward


def _assert_only_adapter_trains(adapter: Adapter) -> None:
    mine = {id(parameter) for parameter in adapter.parameters().values()}
    for name, parameter in adapter.root.named_parameters():
        assert parameter.requires_grad == (id(parameter) in mine), f"{name} trains: {parameter.requires_grad}"
        assert id(parameter) not in mine or parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
