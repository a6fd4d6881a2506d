"""Adapters: what trains, in which format, from which numbers; and that nothing else changes."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapted import dense_weight, layer_parameters, take_off_adapter
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.optim import make_optimizer
from lora_loom.trainer.weights.frozen import compute_in
from lora_loom.trainer.weights.quantize import quantize

KINDS = ("lora", "dora", "loha", "lokr")


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(8, 12), nn.Conv2d(4, 6, 3, padding=1), nn.Linear(12, 4)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)

    def forward(self, x, image):
        return self.last(torch.tanh(self.first(x))).sum() + self.conv(image).square().mean()


PATHS = ["conv", "first", "last"]


def inputs(dtype=torch.float32):
    source = torch.Generator().manual_seed(5)
    return torch.randn(3, 8, generator=source).to(dtype), torch.randn(2, 4, 5, 5, generator=source).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_gets_all_gradients(kind):
    net = Net()
    before = net(*inputs())
    adapter = inject(net, PATHS, NetworkConfig(kind=kind, rank=2), seed=1)
    after = net(*inputs())
    assert after.item() == pytest.approx(before.item(), rel=1e-5)
    after.backward()
    trained = {id(p) for p in adapter.parameters().values()}
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert any(p.grad.abs().sum() > 0 for p in adapter.parameters().values())


@pytest.mark.parametrize("kind", KINDS)
def test_initial_values_depend_on_seed_and_path_alone(kind):
    torch.manual_seed(1)
    first = inject(Net(), PATHS, NetworkConfig(kind=kind, rank=2), seed=1).parameters()
    torch.manual_seed(2)
    again = inject(Net(), ["last", "first", "conv"], NetworkConfig(kind=kind, rank=2), seed=1).parameters()
    other = inject(Net(), PATHS, NetworkConfig(kind=kind, rank=2), seed=2).parameters()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_injection_uses_no_global_randomness(kind):
    state = torch.get_rng_state()
    inject(Net(), PATHS, NetworkConfig(kind=kind, rank=2, dropout=0.1 if kind in ("lora", "dora") else 0), seed=1)
    # Net's own constructor draws; the state after it is what injection must leave alone.
    torch.set_rng_state(state)
    net = Net()
    state = torch.get_rng_state()
    inject(net, PATHS, NetworkConfig(kind=kind, rank=2), seed=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_parameters_are_fp32_whatever_the_base(kind, dtype):
    net = Net()
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype)
    compute_in(net, torch.bfloat16)
    adapter = inject(net, PATHS, NetworkConfig(kind=kind, rank=2), seed=1, compute_dtype=torch.bfloat16)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    for parameter in adapter.parameters().values():
        parameter.data += 0.05  # off the start, where one factor is zero and the other has no gradient yet
    net(*inputs(torch.bfloat16)).backward()
    assert {name for name, p in adapter.parameters().items() if p.grad is None or not p.grad.any()} == set()
    assert {p.grad.dtype for p in adapter.parameters().values()} == {torch.float32}
    for name in ("adamw", "lion", "prodigy", "adafactor"):
        optimizer = make_optimizer(adapter.parameters().values(), OptimizerConfig(name=name, learning_rate=1e-4))
        optimizer.step()
        state = [v for s in optimizer.state.values() for k, v in s.items() if torch.is_tensor(v) and v.ndim]
        assert {tensor.dtype for tensor in state} == {torch.float32}, name
    assert all(torch.isfinite(p).all() for p in adapter.parameters().values())


@pytest.mark.parametrize("source", ["float8", "int8", "int4"])
def test_dora_takes_its_norm_from_the_unpacked_weight(source):
    net = Net()
    if source == "float8":
        net.first.weight.data = net.first.weight.data.to(torch.float8_e4m3fn)
        dense = net.first.weight.data.float()
        compute_in(net, torch.float32)
    else:
        quantize(net, source)
        dense = net.first.weight.dequantize().float()
    adapter = inject(net, ["first"], NetworkConfig(kind="dora", rank=2), seed=1)
    magnitude = adapter.parameters()["first|lora_magnitude_vector.weight"]
    assert torch.allclose(magnitude.flatten(), dense.norm(dim=1), rtol=1e-5)
    net(*inputs()).backward()
    assert magnitude.grad.abs().sum() > 0


STORED = ("float32", "bfloat16", "float8", "scaled float8", "int8", "int4", "convolution", "float8 convolution")


def stored_as(kind):
    """One layer whose weight is kept in some format, computing in bfloat16, and an input for it."""
    source = torch.Generator().manual_seed(2)
    layer = nn.Conv2d(16, 48, 3, padding=1) if "convolution" in kind else nn.Linear(64, 48)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=source) * 0.2)
    net = nn.Sequential(layer).requires_grad_(False)
    if kind in ("int8", "int4"):
        quantize(net, kind)
    elif kind == "bfloat16":
        net.bfloat16()
    elif "float8" in kind:
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    compute_in(net, torch.bfloat16)
    if kind == "scaled float8":
        net[0].scale = torch.tensor(0.375)
    shape = (40, 16, 8, 8) if "convolution" in kind else (2048, 64)
    return net, torch.randn(shape, generator=source).bfloat16()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", STORED)
def test_fresh_dora_changes_nothing_in_bfloat16(kind, dropout):
    """PEFT's own norm, taken in bfloat16 from the weight as it is stored, is 0.2 % off before anything is learnt."""
    net, x = stored_as(kind)
    before = net(x)
    inject(net, ["0"], NetworkConfig(kind="dora", rank=4, dropout=dropout), seed=1, compute_dtype=torch.bfloat16)
    assert ((net(x) - before).norm() / before.norm()).item() < (1e-6 if dropout == 0 else 1e-4)


def linear_or_conv(x, weight):
    x = x.double()
    return x @ weight.T if weight.ndim == 2 else torch.nn.functional.conv2d(x, weight, padding=1)


@pytest.mark.parametrize("kind", STORED)
def test_moved_dora_computes_the_papers_formula(kind):
    """m (W + dW) / |W + dW| in float64 on the unpacked weight, as exact as bfloat16 lets it be; gradients reach m, A, B."""
    net, x = stored_as(kind)
    weight = dense_weight(net[0]).double()
    adapter = inject(net, ["0"], NetworkConfig(kind="dora", rank=4), seed=1, compute_dtype=torch.bfloat16)
    source = torch.Generator().manual_seed(4)
    for parameter in adapter.parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source)
    down, up, magnitude = (parameter.detach().double() for parameter in adapter.parameters().values())
    column = (-1, *[1] * (weight.ndim - 1))
    patched = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    exact = magnitude.reshape(column) * patched / patched.flatten(1).norm(dim=1).reshape(column)
    bias = net[0].get_base_layer().bias.detach().double().reshape(column[: weight.ndim - 1])
    output = net(x).double() - bias
    expected, effect = linear_or_conv(x, exact), linear_or_conv(x, exact - weight)
    assert ((output - expected).norm() / effect.norm()).item() < 0.1
    # Over many inputs bfloat16's rounding averages out, and a norm that is off in a row stays: PEFT's own gives 1.4e-3.
    over = [0, *range(2, x.ndim)]
    gain = (output * expected).sum(over) / expected.square().sum(over)
    assert (gain - 1).square().mean().sqrt() < 7e-4
    net(x).float().square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters().values())


def test_targets_are_whole_paths():
    """A target "last" must not also take "inner.last", as PEFT's own suffix rule would."""
    net = nn.ModuleDict({"last": nn.Linear(4, 4), "inner": nn.ModuleDict({"last": nn.Linear(4, 4)})})
    adapter = inject(net, ["last"], NetworkConfig(rank=2), seed=0)
    assert list(adapter.layers) == ["last"]
    assert type(net["inner"]["last"]) is nn.Linear


def test_dropout_is_a_function_of_its_place():
    net = Net()
    adapter = inject(net, PATHS, NetworkConfig(rank=2, dropout=0.5), seed=1)
    for parameter in adapter.parameters().values():
        parameter.data += 0.3

    def output(draw):
        adapter.set_draw(draw)
        return net(*inputs()).item()

    here = StepKey(seed=0, step=4, micro_batch=1)
    plain = output(None)
    assert output(here) == output(here) != plain
    assert output(None) == plain
    assert len({output(StepKey(seed=s, step=t, micro_batch=m)) for s in (0, 1) for t in (4, 5) for m in (0, 1)}) == 8


def test_dropout_keeps_the_mean():
    net = nn.Sequential(nn.Linear(400, 1))
    adapter = inject(net, ["0"], NetworkConfig(rank=1, dropout=0.25), seed=1)
    dropout = adapter.layers["0"].lora_dropout["default"]
    dropout.draw = StepKey(seed=0, step=0, micro_batch=0)
    kept = dropout(torch.ones(50, 400))
    assert kept.mean().item() == pytest.approx(1, abs=0.02)
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 4 / 3])


LAYERS = {
    "linear": lambda: nn.Linear(8, 12),
    "linear without bias": lambda: nn.Linear(8, 12, bias=False),
    "convolution": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=2),
    "grouped convolution": lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2),
}


@pytest.mark.parametrize("what", LAYERS)
@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_lora_computes_what_pefts_own_layer_does(what, alpha):
    """Output and gradients; PEFT's class still has its forward, ours is laid over the object."""
    torch.manual_seed(0)
    net = nn.Sequential(LAYERS[what]())
    layer = inject(net, ["0"], NetworkConfig(rank=4, alpha=alpha), seed=1).layers["0"]
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 5, 8) if "linear" in what else torch.randn(2, 8, 9, 7)
    results = []
    for forward in (layer.forward, lambda x: type(layer).forward(layer, x)):
        given = x.clone().requires_grad_()
        out = forward(given)
        wanted = [given, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), wanted)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_casts_hands_out_tensors_that_may_be_changed_in_place(bias):
    """Flux adds to the output of its first layer; a view made in an autograd Function refuses that."""
    layer = nn.Sequential(nn.Linear(8, 12, bias=bias).to(torch.bfloat16)).requires_grad_(False)
    compute_in(layer, torch.float32)
    x = torch.randn(2, 5, 8)
    out = layer(x)
    torch.testing.assert_close(out, nn.functional.linear(x, layer[0].weight.float(), layer[0].bias))
    change = torch.ones(12, requires_grad=True)
    out += change
    out.sum().backward()
    assert change.grad.tolist() == [10.0] * 12


def test_disabled_is_the_base():
    net = Net()
    base = net(*inputs()).item()
    adapter = inject(net, PATHS, NetworkConfig(rank=2), seed=1)
    for parameter in adapter.parameters().values():
        parameter.data += 0.3
    adapted = net(*inputs()).item()
    with adapter.disabled():
        assert net(*inputs()).item() == pytest.approx(base, rel=1e-6)
    assert net(*inputs()).item() == adapted != base
    assert all(p.requires_grad for p in adapter.parameters().values())


def test_load_checks_names_and_shapes():
    adapter = inject(Net(), PATHS, NetworkConfig(rank=2), seed=1)
    values = {name: parameter + 1 for name, parameter in adapter.parameters().items()}
    adapter.load(values)
    assert all(torch.equal(adapter.parameters()[name], values[name]) for name in values)
    with pytest.raises(ConfigError, match="differ .* in 1 names"):
        adapter.load({name: value for name, value in values.items() if name != "first|lora_A.weight"})
    with pytest.raises(ConfigError, match="use the same rank"):
        adapter.load({**values, "first|lora_A.weight": torch.zeros(3, 8)})


def test_layer_parameters_are_named_without_the_adapters_name():
    adapter = inject(Net(), ["first"], NetworkConfig(kind="dora", rank=2), seed=1)
    names = list(layer_parameters(adapter.layers["first"]))
    assert names == ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"]


def test_an_adapter_is_taken_off_and_the_layers_are_the_objects_they_were():
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Sequential(torch.nn.Linear(4, 4))})
    before, x = dict(network.named_modules()), torch.randn(2, 4)
    for kind in ("lora", "dora", "oft"):
        inject(network, ["a", "b.0"], NetworkConfig(kind=kind, rank=2), seed=0)
        assert network["a"] is not before["a"]
        take_off_adapter(network)
        assert dict(network.named_modules()) == before
        assert torch.equal(network["b"](x), before["b"](x))
