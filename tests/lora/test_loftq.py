"""LoftQ: what quantizing a base has lost is where the adapter begins, and what the file leaves out."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, TrainConfig
from lora_loom.trainer.config.toml import parse
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapted import NAME, own_weight
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file
from lora_loom.trainer.weights.frozen import FrozenLinear
from lora_loom.trainer.weights.quantize import original_of, quantize
from lora_loom.trainer.weights.row_parts import split

LOFTQ = NetworkConfig(rank=4, alpha=8.0, init="loftq")


def quantized(kind="int4", *, keep=True, parts=False):
    """(a network of one quantized Linear, its weight before)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 64))
    weight = net[0].weight.detach().clone()
    if parts:
        net[0].__class__ = FrozenLinear
        split(net[0], {"q": (0, 32), "k": (32, 64)})
    quantize(net, kind, torch.float32, torch.device("cpu"), keep=keep)
    return net, weight


@pytest.mark.parametrize("kind", ["int4", "nf4", "int8"])
def test_the_base_begins_as_near_to_the_original_as_a_product_of_that_rank_can_bring_it(kind):
    net, weight = quantized(kind)
    rounded = own_weight(net[0])
    adapter = inject(net, ["0"], LOFTQ, seed=1)
    [layer] = adapter.layers.values()
    down, up = (adapter.parameters()[f"0|lora_{name}.weight"] for name in "AB")
    lost = weight - rounded
    u, s, v = torch.linalg.svd(lost)
    best = (u[:, :4] * s[:4]) @ v[:4]
    product = up @ down * layer.scaling[NAME]
    assert (lost - product).norm() < 1.01 * (lost - best).norm() < lost.norm()
    assert (best.norm() - product.norm()).abs() < 0.05 * best.norm()
    x = torch.randn(3, 128)
    expected = x @ (rounded + product).T + net[0].get_base_layer().bias
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    with adapter.disabled():  # the correction belongs to the base
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert original_of(layer.get_base_layer(), x.device) is None  # nothing holds the original any longer


@pytest.mark.parametrize("parts", [False, True], ids=["whole", "rows of a fused module"])
def test_the_file_is_what_training_added_and_the_correction_is_not_in_it(parts):
    """Over the original base the file acts as it did in training over the corrected one."""
    net, weight = quantized(parts=parts)
    paths = ["0.q", "0.k"] if parts else ["0"]
    adapter = inject(net, paths, LOFTQ, seed=1)
    before = to_file(adapter, str, torch.float32)
    assert all(
        weight_change(one, torch.zeros(64 // len(paths), 128)).abs().max() < 1e-6
        for one in group_by_module(before)[0].values()
    )
    x = torch.randn(3, 128)
    first = net(x).detach()
    net(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters().values())
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    file = to_file(adapter, str, torch.float32)
    assert max_relative_error(adapter, str, file)[0] < 1e-5
    modules = group_by_module(file)[0]
    change = torch.cat([weight_change(modules[path], torch.zeros(64 // len(paths), 128)) for path in paths])
    torch.testing.assert_close(net(x) - first, x @ change.T, rtol=1e-3, atol=1e-3)
    assert {one["lora_A.weight"].shape[0] for one in modules.values()} == {8}
    original = x @ (weight + change).T - x @ weight.T
    torch.testing.assert_close(original, x @ change.T, rtol=1e-3, atol=1e-3)


def test_initial_values_are_the_same_again():
    first, again = (inject(quantized()[0], ["0"], LOFTQ, seed=1).parameters() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_layer_that_is_not_quantized_begins_as_usual():
    net = nn.Sequential(quantized()[0][0], nn.Conv2d(4, 4, 1))
    adapter = inject(net, ["0", "1"], LOFTQ, seed=1)
    assert adapter.layers["0"].start is not None
    assert adapter.layers["1"].start is None
    assert not adapter.parameters()["1|lora_B.weight"].any()


def test_what_it_needs_is_said():
    with pytest.raises(ConfigError, match="none of these layers was quantized for the run"):
        inject(quantized(keep=False)[0], ["0"], LOFTQ, seed=1)
    file = {"name": "n", "model": {"base": "b"}, "dataset": [{"folder": "x"}], "network": {"init": "loftq"}}
    with pytest.raises(
        ConfigError,
        match="network.init = 'loftq': it corrects a base that is quantized for the run: set model.quantize",
    ):
        parse(file, TrainConfig)
    with pytest.raises(ConfigError, match="matmul = 'int8' keeps other numbers"):
        parse({**deepcopy(file), "model": {"base": "b", "matmul": "int8"}}, TrainConfig)
    assert parse({**file, "model": {"base": "b", "quantize": "nf4"}}, TrainConfig).network.is_loftq
    with pytest.raises(ConfigError, match="lokr has no init here"):
        NetworkConfig(kind="lokr", init="loftq")
