"""model.matmul: which layers of a frozen network compute with 8-bit numbers, and whether a device can."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..frozen import FrozenLinear, dense, is_quantized_tensor
from ..quantize import pack_linears, plain_linear
from ..streaming import find_blocks
from .row_scaled import LEAST_ROWS, NUMBERS, Numbers, RowScaled, to_row_scaled

Taken = Callable[[Tensor], tuple[Tensor, Tensor] | None]
"""(codes, factors) of a weight that somebody else has quantized, if it holds such."""


def check_matmul(kind: str, device: torch.device) -> None:
    """Raise ConfigError if a device has no product for the setting model.matmul; the product is tried."""
    if kind == "off":
        return
    problem = _problem(NUMBERS[kind], device)
    if problem:
        works = [repr(name) for name, numbers in NUMBERS.items() if name != kind and not _problem(numbers, device)]
        raise ConfigError(
            f"model.matmul = {kind!r}: {device} has no product of such numbers here ({problem}); use {' or '.join([*works, repr('off')])}"
        )


def _problem(numbers: Numbers, device: torch.device) -> str:
    """Why a product fails; "" where it is right."""
    try:
        codes = torch.ones(LEAST_ROWS, 32, device=device).to(numbers.dtype)
        weight = torch.ones(32, 32, device=device).to(numbers.dtype)
        made = [numbers.product(codes, one) for one in (weight.t(), weight)]
        return "" if all(bool((one == 32).all()) for one in made) else "its results are wrong"
    except (RuntimeError, AttributeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}"


def use_products(
    module: nn.Module,
    kind: str,
    dtype: torch.dtype,
    device: torch.device | None = None,
    taken: Taken = lambda weight: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Keep the Linears in a network's repeated blocks in 8 bits, in place, one at a time, and have them compute so; all else in `dtype`.

    Weights that are such numbers already stay what they are. Layers whose sides are no multiples of what devices take stay dense.
    Raises ConfigError where no layer is left.
    """
    numbers = NUMBERS[kind]
    paths = [
        path
        for paths in find_blocks(module).values()
        for path in paths
        if isinstance(layer := module.get_submodule(path), nn.Linear) and numbers.fits(layer.weight)
    ]
    if not paths:
        raise ConfigError(
            f"model.matmul = {kind!r}: no Linear in the blocks of this network has rows and columns that are multiples of {numbers.multiple}; use 'off'"
        )

    def pack(linear: nn.Linear) -> nn.Linear:
        found = _as_it_is(linear, numbers, taken)
        if found is None:
            plain = plain_linear(linear, dtype, device)
            weight = to_row_scaled(plain.weight, numbers)
            plain.rounding = _rounding(weight, plain.weight)  # type: ignore[assignment]
        else:
            plain = plain_linear(linear, dtype, device, weight=False)
            codes, factors = (part.to(device or part.device) for part in found)
            weight = RowScaled(codes, factors.float().reshape(-1, 1), codes.shape, dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.__class__ = FrozenLinear
        return plain.eval()

    pack_linears(module, paths, pack, progress)


def _as_it_is(linear: nn.Linear, numbers: Numbers, taken: Taken) -> tuple[Tensor, Tensor] | None:
    """The (codes, factors) that a file holds, if they are of this kind."""
    weight, scale = linear.weight, getattr(linear, "scale", None)
    if is_quantized_tensor(weight):
        found = taken(weight)
    else:
        found = (weight.detach(), torch.ones((), device=weight.device) if scale is None else scale)
    fits = found is not None and found[0].dtype == numbers.dtype and found[1].numel() in (1, found[0].shape[0])
    return found if fits else None


def _rounding(packed: RowScaled, plain: Tensor) -> tuple[float, float]:
    """(sum of squares of what was rounded away, that of the weight); of shapes there is nothing to sum."""
    if plain.is_meta:
        return 0.0, 0.0
    exact = plain.float()
    return float((dense(packed, torch.float32) - exact).square().sum()), float(exact.square().sum())


def product_layers(module: nn.Module) -> list[FrozenLinear]:
    """The layers of a network that compute with 8-bit numbers."""
    linears = (part for part in module.modules() if isinstance(part, FrozenLinear))
    return [part for part in linears if isinstance(part._parameters["weight"], RowScaled)]


def rounding_of(module: nn.Module) -> float:
    """How far the weights of a network's `product_layers` are from those of the file, as a norm relative to theirs; 0 for the file's own."""
    apart, whole = 0.0, 0.0
    for layer in product_layers(module):
        mine = vars(layer).get("rounding", (0.0, 0.0))
        apart, whole = apart + mine[0], whole + mine[1]
    return float((apart / max(whole, 1e-30)) ** 0.5)


@contextmanager
def exact_products(module: nn.Module) -> Iterator[None]:
    """A context in which they multiply by the same weights, unpacked, in the dtype of their input."""
    layers = product_layers(module)
    for layer in layers:
        layer.is_exact = True
    try:
        yield
    finally:
        for layer in layers:
            del layer.is_exact
