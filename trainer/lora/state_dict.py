"""Conversion of an adapter's parameters to the tensors of a LoRA file and back.

LoRA and LoHa are written as trained. DoRA and LoKr are rewritten so that ComfyUI's arithmetic gives the weight that was
trained; `to_training` reverts that. `alpha` is always stored, so that no loader has to guess the scale.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..config.run import NetworkConfig
from ..errors import ModelFileError
from .adapted import NAME, PeftLayer, dense_weight, layer_parameters
from .adapter import Adapter
from .host_formula import group_by_module, rank_of, refuse_broken, weight_change
from .initial import with_start
from .kinds.foreign import no_adapter, refuse_foreign
from .kinds.own import OwnLayer

FileKey = Callable[[str], str]
"""Maps a module path to the module's key in a LoRA file."""
Change = Callable[[str, Tensor], Tensor]
"""Maps (module key, base weight) to the change of the weight that a loader makes."""
Arithmetic = Callable[[Mapping[str, Tensor]], Change]
"""How a loader reads a LoRA file's tensors. It raises ModelFileError for a tensor that would not be used."""

DORA_SCALE = "lora_magnitude_vector.weight"


def effective_alpha(network: NetworkConfig) -> float:
    """The alpha for which alpha / rank is the scale used in training (rsLoRA scales by alpha / sqrt(rank))."""
    alpha = float(network.rank if network.alpha is None else network.alpha)
    return alpha * math.sqrt(network.rank) if network.rslora else alpha


def trained_change(layer: PeftLayer, values: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """The change of the weight that a layer computes with these tensors while training, in the base's shape and dtype."""
    if isinstance(layer, OwnLayer):
        return layer.change(values, base)
    change = _training_difference(layer, values).to(base).reshape(base.shape)
    if DORA_SCALE not in values:
        return change
    patched = base + change
    norm = torch.linalg.vector_norm(patched.flatten(1), dim=1)
    gain = (values[DORA_SCALE].to(base).flatten() / norm).reshape(-1, *[1] * (base.ndim - 1))
    return gain * patched - base


def _training_difference(layer: PeftLayer, values: Mapping[str, Tensor]) -> Tensor:
    scale = layer.scaling[NAME]
    if "lora_A.weight" in values:
        down, up = with_start(layer, values["lora_A.weight"], values["lora_B.weight"])
        return up.flatten(1) @ down.flatten(1) * scale
    if "hada_t1" in values:
        first, second = (
            torch.einsum(
                "i j k l, j r, i p -> p r k l", *(values[f"hada_{name}"] for name in (f"t{n}", f"w{n}_b", f"w{n}_a"))
            )
            for n in "12"
        )
        return first * second * scale
    if "hada_w1_a" in values:
        return (values["hada_w1_a"] @ values["hada_w1_b"]) * (values["hada_w2_a"] @ values["hada_w2_b"]) * scale
    first = values["lokr_w1"] if "lokr_w1" in values else values["lokr_w1_a"] @ values["lokr_w1_b"]
    second = values["lokr_w2"] if "lokr_w2" in values else values["lokr_w2_a"] @ values["lokr_w2_b"]
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second) * scale


def size_said(adapter: Adapter, dtype: torch.dtype) -> str:
    """How large a file of whole weights is; "" for small ones."""
    if adapter.network.kind not in ("diff", "ia3"):
        return ""
    size = sum(math.prod(cast(OwnLayer, layer).shape) for layer in adapter.layers.values()) * dtype.itemsize
    return f"; its files hold whole weights, {size / 1e9:.1f} GB each"


@torch.no_grad()
def to_file(
    adapter: Adapter, file_key: FileKey, dtype: torch.dtype, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of the LoRA file, on the CPU. `values` replaces the current parameters, for instance by their EMA; it has the
    names of `adapter.parameters()`."""
    tensors: dict[str, Tensor] = {}
    for path, layer in adapter.layers.items():
        mine = _current_values(path, layer, values, torch.float32)
        key = file_key(path)
        for suffix, tensor in _file_form(layer, mine, adapter.network, key, dtype).items():
            tensors[f"{key}.{suffix}"] = tensor.contiguous()
    return tensors


def _file_form(
    layer: PeftLayer, mine: dict[str, Tensor], network: NetworkConfig, key: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    if isinstance(layer, OwnLayer):
        return {name: tensor if name == "alpha" else tensor.to(dtype) for name, tensor in layer.in_file(mine).items()}
    if layer.start is not None:
        mine["lora_A.weight"], mine["lora_B.weight"] = with_start(layer, mine["lora_A.weight"], mine["lora_B.weight"])
    rank = rank_of(mine) or network.rank
    alpha = layer.scaling[NAME] * rank
    file: dict[str, Tensor] = {}
    if "lora_A.weight" in mine:
        down, up = ("lora_down", "lora_up") if key.startswith("lora_") else ("lora_A", "lora_B")
        file[f"{down}.weight"], file[f"{up}.weight"] = mine["lora_A.weight"], mine["lora_B.weight"]
    else:
        file |= mine
        if "lokr_w1" in mine and "lokr_w2" in mine:  # ComfyUI then knows no rank and ignores alpha
            file["lokr_w2"] = mine["lokr_w2"] * layer.scaling[NAME]
            alpha = float(rank)
    if dtype == torch.float16:
        file = _balanced(file)
    if (
        "hada_w1_a" in mine
        and "hada_t1" not in mine
        and mine["hada_w1_a"].shape[0] * mine["hada_w1_b"].shape[1] < SMALL
    ):
        dtype = torch.float32
    file = {name: tensor.to(dtype) for name, tensor in file.items()}
    if DORA_SCALE in mine:  # it stays fp32, because its rounding error would affect the whole weight
        file["dora_scale"] = _host_dora_scale(layer, mine)
    file["alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return file


def _host_dora_scale(layer: PeftLayer, mine: Mapping[str, Tensor]) -> Tensor:
    """m * |W| / |W + dW| for each output row, because ComfyUI multiplies by dora_scale / |W| where training uses m / |W + dW|."""
    base = dense_weight(layer.get_base_layer()).cpu()
    patched = base + _training_difference(layer, mine).reshape(base.shape)
    base_norm, patched_norm = (torch.linalg.vector_norm(w.flatten(1), dim=1) for w in (base, patched))
    scale = mine[DORA_SCALE].flatten() * (base_norm + torch.finfo(torch.float32).eps) / patched_norm
    return scale.reshape(-1, *[1] * (base.ndim - 1))


SMALL = 2**16
"""Number of elements of a weight below which a LoHa is stored in fp32. bfloat16 rounds all four factors, which costs 3.3e-3
of the change on average over many elements, but up to 7e-3 for a weight of 8 x 8. Such modules need hardly any space."""

PAIRS = (
    ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"), ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"), ("lokr_w1", "lokr_w2"), ("lokr_w2_a", "lokr_w2_b"),
)  # fmt: skip


def _balanced(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move powers of two between the factors of each product, which is exact, so that small factors do not underflow in fp16."""
    file = dict(file)
    for first, second in PAIRS:
        if first in file and second in file and file[first].any() and file[second].any():
            ratio = file[first].abs().max() / file[second].abs().max()
            power = torch.exp2(torch.round(torch.log2(ratio) / 2))
            file[first], file[second] = file[first] / power, file[second] * power
    return file


def check_fits(
    tensors: Mapping[str, Tensor], keys: Sequence[str], network: NetworkConfig
) -> dict[str, dict[str, Tensor]]:
    """Returns {file key: {suffix: tensor}} of a LoRA to start from. Raises ModelFileError unless it has these keys and this rank."""
    modules, unknown = group_by_module(tensors)
    named = f"network.init_from = {network.init_from!r}" if network.init_from else "network.init_from"
    refuse_foreign(unknown, named)
    if not modules:
        raise ModelFileError(f"{named} {no_adapter(tensors)}")
    if unknown:
        raise ModelFileError(f"{named} has {len(unknown)} tensors of an unknown kind, first {unknown[0]}")
    refuse_broken(tensors, named)
    lacking, extra = sorted(set(keys) - modules.keys()), sorted(modules.keys() - set(keys))
    if lacking or extra:
        said = [f"it lacks {len(lacking)} modules that are trained, first {lacking[0]}"] if lacking else []
        said += [f"it holds {len(extra)} that are not, first {extra[0]}"] if extra else []
        raise ModelFileError(
            f"{named} does not fit this network: {', and '.join(said)}; use the same family and target_modules"
        )
    ranks = {rank_of(parts) for parts in modules.values()} - {0}
    if network.has_one_rank and ranks and ranks != {network.rank}:
        raise ModelFileError(f"{named} has rank {sorted(ranks)}, network.rank = {network.rank}: use the file's rank")
    return modules


@torch.no_grad()
def to_training(adapter: Adapter, file_key: FileKey, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LoRA file as values for `adapter.load`. Raises ModelFileError if the file does not fit the adapter."""
    values: dict[str, Tensor] = {}
    wanted = {file_key(path): path for path in adapter.layers}
    modules = check_fits(tensors, list(wanted), adapter.network)
    for key, path in wanted.items():
        for name, tensor in _training_form(adapter.layers[path], modules[key], adapter.network, key).items():
            values[f"{path}|{name}"] = tensor
    return values


def _training_form(layer: PeftLayer, file: Mapping[str, Tensor], network: NetworkConfig, key: str) -> dict[str, Tensor]:
    expected = layer_parameters(layer)
    mine = {_TRAINING_NAMES.get(name, name): tensor.float() for name, tensor in file.items()}
    alpha = mine.pop("alpha").item() if "alpha" in mine else None
    if isinstance(layer, OwnLayer) and file.keys() - {"alpha"} == expected.keys():
        mine = layer.from_file({name: file[name].float() for name in expected}, alpha)
        alpha = None
    dora_scale = mine.pop("dora_scale", None)
    if DORA_SCALE in expected and dora_scale is not None:
        base = dense_weight(layer.get_base_layer())
        patched = base + weight_change({k: v for k, v in file.items() if k != "dora_scale"}, base)
        base_norm, patched_norm = (torch.linalg.vector_norm(w.flatten(1), dim=1) for w in (base, patched))
        mine[DORA_SCALE] = (
            dora_scale.flatten().to(base) * patched_norm / (base_norm + torch.finfo(torch.float32).eps)
        ).reshape(expected[DORA_SCALE].shape)
    if mine.keys() != expected.keys():
        raise ModelFileError(
            f"network.init_from: {key} is another kind of adapter ({sorted(mine)}), this network's is {network.kind}"
        )
    wrong = [name for name in mine if mine[name].shape != expected[name].shape]
    if wrong:
        raise ModelFileError(
            f"network.init_from: {key}.{wrong[0]} has shape {tuple(mine[wrong[0]].shape)}, this network needs {tuple(expected[wrong[0]].shape)}: use the file's rank"
        )
    if isinstance(layer, OwnLayer):
        return mine
    return _rescaled(mine, _file_scale(file, alpha), layer.scaling[NAME])


def _file_scale(file: Mapping[str, Tensor], alpha: float | None) -> float:
    if "lokr_w1" in file and "lokr_w2" in file:
        return 1.0
    return 1.0 if alpha is None else alpha / rank_of(file)


def _rescaled(mine: dict[str, Tensor], file_scale: float, training_scale: float) -> dict[str, Tensor]:
    """Multiply the ratio of the scales into one factor, so that the product is the same as in the file."""
    factor = file_scale / training_scale
    for name in ("lora_B.weight", "hada_w2_a", "lokr_w2", "lokr_w2_a"):
        if name in mine and factor != 1:
            mine[name] = mine[name] * factor
            break
    return mine


_TRAINING_NAMES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


NO_EFFECT = 1e-9
"""A change below this share of |W| disappears in the rounding of any weight."""
DORA_FLOOR = 1e-3
"""DoRA's change is a small difference of large numbers; below this share of |W| the rounding of its fp32 gain is visible."""


def reference_arithmetic(tensors: Mapping[str, Tensor]) -> Change:
    """ComfyUI's arithmetic as implemented in `host_formula`."""
    modules, unknown = group_by_module(tensors)
    if unknown:
        raise ModelFileError(f"the saved LoRA has {len(unknown)} tensors of an unknown kind, first {unknown[0]}")

    def change(key: str, base: Tensor) -> Tensor:
        if key not in modules:
            raise ModelFileError(f"the saved LoRA lacks {key}")
        return weight_change({name: tensor.cpu() for name, tensor in modules[key].items()}, base)

    return change


@torch.no_grad()
def max_relative_error(
    adapter: Adapter,
    file_key: FileKey,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Tensor] | None = None,
    arithmetic: Arithmetic = reference_arithmetic,
) -> tuple[float, str]:
    """Returns (the largest |dW_host - dW_trained| / |dW_trained| over all modules, key of that module), computed in float64.

    Raises ModelFileError if a module is missing in the file, or if a tensor of the file would not be used.
    """
    change = arithmetic(tensors)
    worst, where = 0.0, ""
    for path, layer in adapter.layers.items():
        key = file_key(path)
        base = dense_weight(layer.get_base_layer()).double().cpu()
        trained = trained_change(layer, _current_values(path, layer, values, torch.float64), base)
        host = change(key, base)
        floor = DORA_FLOOR if f"{key}.dora_scale" in tensors else NO_EFFECT
        size = trained.norm().clamp_min(floor * base.norm())
        error = ((host - trained).norm() / size.clamp_min(1e-30)).item()
        if math.isnan(error):
            return math.inf, key
        if error > worst:
            worst, where = error, key
    return worst, where


def _current_values(
    path: str, layer: PeftLayer, values: Mapping[str, Tensor] | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The parameters of a layer, or the given values in their place, on the CPU."""
    return {
        name: (values[f"{path}|{name}"] if values else parameter).detach().to("cpu", dtype)
        for name, parameter in layer_parameters(layer).items()
    }
