"""LoRA's two autograd functions against the plain formula, what they keep, and what a recomputed block is spared."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.lora import adapter as adapters
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.kinds import low_rank
from lora_loom.trainer.weights.frozen import FrozenLinear, compute_in
from lora_loom.trainer.weights.row_parts import split


def adapted(layer, dtype=torch.float32, alpha=2.0, path="layer"):
    """A network of one layer with a LoRA whose B is not zero."""
    network = nn.Module()
    network.layer = layer
    compute_in(network, dtype)
    made = inject(network, [path], NetworkConfig(rank=4, alpha=alpha), seed=0, compute_dtype=dtype)
    for name, parameter in made.parameters().items():
        if name.endswith("lora_B.weight"):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network, made


def fused():
    layer = FrozenLinear(6, 10)
    split(layer, {"a": (0, 4), "b": (4, 10)})
    return layer


KINDS = {
    "linear": (lambda: nn.Linear(6, 10), (2, 5, 6), "layer"),
    "linear, two dimensions, no bias": (lambda: nn.Linear(6, 10, bias=False), (5, 6), "layer"),
    "linear, four dimensions": (lambda: nn.Linear(6, 10), (2, 3, 5, 6), "layer"),
    "weight in another dtype": (lambda: nn.Linear(6, 10).to(torch.float16), (2, 5, 6), "layer"),
    "fused": (fused, (2, 5, 6), "layer"),
    "rows": (fused, (2, 5, 6), "layer.b"),
    "convolution": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 8, 7), "layer"),
    "convolution, dilated": (lambda: nn.Conv2d(6, 10, (3, 1), dilation=2, bias=False), (2, 6, 8, 7), "layer"),
    "convolution, in another dtype": (lambda: nn.Conv2d(6, 10, 1).to(torch.float16), (2, 6, 8, 7), "layer"),
}


def results(network, made, x, *, transposed=False):
    x = x.detach().requires_grad_()
    out = network.layer(x.transpose(0, 1).contiguous().transpose(0, 1) if transposed else x)
    out.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in made.parameters().items()}
    for parameter in made.parameters().values():
        parameter.grad = None
    return out.detach(), x.grad, grads


@pytest.mark.parametrize("alpha", [2.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_plain_formula(monkeypatch, kind, alpha):
    make, shape, path = KINDS[kind]
    torch.manual_seed(0)
    network, made = adapted(make(), alpha=alpha, path=path)
    calls = []
    for transposed in (False, True):
        x = torch.randn(shape)
        monkeypatch.setattr(adapters, "lora_output", lambda *a: calls.append(a) or low_rank.lora_output(*a))
        monkeypatch.setattr(adapters, "frozen_of", low_rank.frozen_of)
        mine = results(network, made, x, transposed=transposed)
        assert len(calls) == 1 + transposed
        monkeypatch.setattr(adapters, "frozen_of", lambda layer, x: None)
        plain = results(network, made, x, transposed=transposed)
        assert torch.equal(mine[0], plain[0])
        torch.testing.assert_close(mine[1], plain[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine[2], plain[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_an_input_without_gradient_costs_none(monkeypatch, kind):
    make, shape, path = KINDS[kind]
    network, made = adapted(make(), path=path)
    dense = []
    monkeypatch.setattr(low_rank.Frozen, "dense", lambda self, dtype: dense.append(1) or self.weight)
    network.layer(torch.randn(shape)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters().values())
    assert len(dense) == 1  # the backward pass does not ask for the weight


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_network_may_add_to_the_output_in_its_place(kind):
    make, shape, path = KINDS[kind]
    network, made = adapted(make(), path=path)
    out = network.layer(torch.randn(shape, requires_grad=True))
    out += 1
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters().values())


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 6), lambda: nn.Conv2d(6, 6, 3, padding=1)])
def test_the_product_that_a_recomputed_block_ends_with_is_not_made_again(monkeypatch, make):
    """Two layers, forward and backward, take four products with frozen weights; recomputing takes one more, not two."""
    network = nn.Sequential(make(), make())
    network.requires_grad_(False)
    inject(network, ["0", "1"], NetworkConfig(rank=2), seed=0)
    plain, dense = low_rank.Frozen.dense, []
    monkeypatch.setattr(low_rank.Frozen, "dense", lambda self, dtype: dense.append(1) or plain(self, dtype))
    x = torch.randn((2, 6, 5, 6) if isinstance(network[0].base_layer, nn.Conv2d) else (2, 5, 6), requires_grad=True)

    def block(x):
        return x + network(x)  # a residual block needs no value of what it adds

    checkpoint(block, x, use_reentrant=False, preserve_rng_state=False).square().sum().backward()
    assert len(dense) == 5
    assert x.grad is not None


def test_small_products_in_float32_are_nearer_to_the_exact_gradients(monkeypatch):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 48).to(torch.bfloat16), torch.randn(2, 40, 64).to(torch.bfloat16)
    network, made = adapted(layer, torch.bfloat16)
    mine = results(network, made, x)
    assert mine[0].dtype == torch.bfloat16
    monkeypatch.setattr(low_rank, "CACHED", 0)
    rounded = results(network, made, x)
    base = layer.double()
    factors = [made.parameters()[f"layer|lora_{name}.weight"].detach().double().requires_grad_() for name in "AB"]
    y = x.double()
    ((y @ factors[0].T @ factors[1].T) * 0.5 + base(y)).square().sum().backward()

    def error(found):
        pairs = zip(found[2].values(), factors, strict=True)
        return [float((one.double() - exact.grad).norm() / exact.grad.norm()) for one, exact in pairs]

    for near, far in zip(error(mine), error(rounded), strict=True):
        assert near < far


def test_layers_that_compute_in_their_own_way_are_left_to_it():
    class Own(nn.Linear):
        pass

    x = torch.randn(2, 6)
    assert low_rank.frozen_of(Own(6, 10).requires_grad_(False), x) is None
    assert low_rank.frozen_of(nn.Linear(6, 10), x) is None  # its weight trains
    assert low_rank.frozen_of(nn.Linear(6, 10).requires_grad_(False), x) is not None
    same = nn.Conv2d(6, 6, 3, padding="same").requires_grad_(False)
    assert low_rank.frozen_of(same, torch.randn(1, 6, 4, 4)) is None
