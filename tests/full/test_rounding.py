"""Weights in bfloat16: rounded at random, in the mean the exact value, the same again from the same seed; gradients as plain autograd's."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_loom.trainer.config.network import NetworkConfig
from lora_loom.trainer.config.run import OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.full.network import trained_part
from lora_loom.trainer.full.rounding import RoundedOptimizer, rounded
from lora_loom.trainer.seeding import generator
from lora_loom.trainer.training.optim import make_optimizer, optimizer_of
from lora_loom.trainer.weights.frozen import compute_in


@pytest.mark.parametrize("value", [1.0 + 2**-10, -3.0 - 2**-9, 1e-3, -7.3e-20, 123456.7])
def test_the_mean_is_the_value_and_every_one_a_neighbour(value):
    values = torch.full((200_000,), value)
    made = rounded(values, torch.bfloat16, generator(0, "test")).double()
    exact = values[0].double()
    below, above = made.min(), made.max()
    assert below <= exact <= above
    assert len(made.unique()) <= 2
    assert above - below <= exact.abs() * 2**-7
    error = (made.mean() - exact).abs() / (above - below).clamp_min(1e-300)
    assert error < 5 * 0.5 / len(values) ** 0.5  # five standard deviations of the mean


def test_what_bfloat16_holds_stays_and_seeds_decide():
    values = torch.randn(1000).bfloat16().float()
    assert torch.equal(rounded(values, torch.bfloat16, generator(0, "a")).float(), values)
    loose = torch.randn(1000)
    draws = [rounded(loose, torch.bfloat16, generator(0, purpose)) for purpose in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    kept = rounded(odd, torch.bfloat16, generator(0, "a"))
    assert torch.equal(kept[[0, 1, 3]].float(), odd[[0, 1, 3]])
    assert kept[2].isnan()


def test_small_steps_add_up_that_rounding_to_the_nearest_would_lose():
    """A thousand steps of 1/1000 of a neighbour's distance: one distance, not none."""
    weight = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    step = 2**-7 / 1000
    config = OptimizerConfig(name="sgd", learning_rate=step, options={"momentum": 0.0, "nesterov": False})
    optimizer = RoundedOptimizer([{"params": [weight], "lr": step}], partial(make_optimizer, config=config), seed=0)
    for _ in range(1000):
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
    assert (weight.detach().float().mean() - 1).item() == pytest.approx(2**-7, rel=0.1)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "sgd"])
def test_in_fp32_it_is_the_optimizer_itself(name):
    """One optimizer per tensor on its copy does what the optimizer of all does."""
    start = [torch.randn(6, 4, generator=generator(0, n)) for n in range(3)]
    config = OptimizerConfig(name=name, learning_rate=1e-2, weight_decay=0.1 if name != "sgd" else 0.0)
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    rounding = RoundedOptimizer([{"params": ours, "lr": 1e-2}], partial(make_optimizer, config=config), seed=0)
    plain = make_optimizer(theirs, config)
    for step in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(6, 4, generator=generator(1, step))
            other.grad = one.grad.clone()
        rounding.step()
        plain.step()
    assert all(torch.allclose(one, other, rtol=1e-6, atol=1e-7) for one, other in zip(ours, theirs, strict=True))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 8), nn.LayerNorm(8)
        self.last = nn.Linear(8, 2, bias=False)
        self.table = nn.Parameter(torch.randn(2))

    def forward(self, x):
        return self.last(F.silu(self.norm(self.first(self.conv(x).movedim(1, -1))))) * self.table


@pytest.mark.parametrize(
    ("stored", "computed"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_gradients_are_plain_autograds(stored, computed):
    """Of a network whose weights are cast for the moment: every cast is a part of the graph."""
    stored, computed = getattr(torch, stored), getattr(torch, computed)
    torch.manual_seed(0)
    net, x = Net().to(stored), torch.randn(2, 3, 5, 5).to(computed)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    torch.func.functional_call(
        Net(), {n: p.to(computed) for n, p in leaves.items()}, (x,)
    ).float().square().sum().backward()
    net.requires_grad_(False)
    compute_in(net, computed)
    part = trained_part(net, ["", "conv", "first", "last", "norm"], NetworkConfig(kind="full"), seed=0)
    net(x).float().square().sum().backward()
    for name, parameter in part.parameters().items():
        path, _, own = name.partition("|")
        expected = leaves[f"{path}.{own}" if path else own].grad
        off = (parameter.grad.float() - expected.float()).norm() / expected.float().norm()
        assert off <= (1e-6 if stored == computed == torch.float32 else 2e-2), name  # rounding of bfloat16


def test_only_what_is_chosen_trains_with_rates_of_its_own():
    net = Net().bfloat16().requires_grad_(False)
    network = NetworkConfig(kind="full", module_rates={"first": 0.5})
    part = trained_part(net, ["first", "last"], network, seed=0)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        "first.weight",
        "first.bias",
        "last.weight",
    }
    optimizer = optimizer_of(part.parameters(), OptimizerConfig(name="adafactor", learning_rate=1e-3), network, {})
    assert [(group["rate_scale"], len(group["params"])) for group in optimizer.param_groups] == [(1.0, 1), (0.5, 2)]
    with pytest.raises(ConfigError, match="base model itself"), part.disabled():
        pass
