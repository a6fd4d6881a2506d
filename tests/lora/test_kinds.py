"""Kinds of adapters with a layer of ours: what they compute, what their files hold, and initial values that come from the weight."""

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.lora.adapted import layer_parameters
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.dropout import NestedRanks
from lora_loom.trainer.lora.host_formula import group_by_module, weight_change
from lora_loom.trainer.lora.initial import top_singular
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file, to_training, trained_change
from lora_loom.trainer.seeding import StepKey
from tests.lora.test_adapter import inputs
from tests.lora.test_options import Net, moved

KINDS = {
    "glora": {"kind": "glora", "rank": 3, "alpha": 6.0},
    "oft": {"kind": "oft", "rank": 3},
    "boft": {"kind": "boft", "rank": 6},
    "diff": {"kind": "diff"},
    "ia3": {"kind": "ia3"},
    "tucker": {"kind": "lora", "rank": 3, "alpha": 6.0, "tucker": True, "rslora": True},
    "loha tucker": {"kind": "loha", "rank": 3, "alpha": 6.0, "tucker": True},
    "pissa": {"kind": "lora", "rank": 3, "alpha": 6.0, "init": "pissa"},
    "olora": {"kind": "lora", "rank": 3, "init": "olora", "rslora": True},
    "singular": {"kind": "lora", "rank": 3, "init": "singular"},
}
EACH = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


class Large(Net):
    """With rows that all kinds can divide; inputs as in Net."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.last = nn.Linear(12, 6)


PATHS = ["conv", "first", "last"]


def large(options):
    torch.manual_seed(0)
    net = Large()
    return net, inject(net, PATHS, NetworkConfig(**options), seed=1)


@EACH
def test_a_fresh_one_changes_nothing_and_gets_gradients(options):
    torch.manual_seed(0)
    before = Large()(*inputs())
    net, adapter = large(options)
    out = net(*inputs())
    torch.testing.assert_close(out, before, rtol=1e-5, atol=1e-6)
    out.backward()
    assert any(p.grad.abs().sum() > 0 for p in adapter.parameters().values())
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters().values()}


def moved_off(adapter):
    source = torch.Generator().manual_seed(3)
    for parameter in adapter.parameters().values():
        parameter.data += torch.randn(parameter.shape, generator=source) * 0.2


@EACH
def test_the_output_is_that_of_the_changed_weight(options):
    """And of the weight that ComfyUI makes of the file (its formula, which fixtures compare with its code)."""
    net, adapter = large(options)
    moved_off(adapter)
    out, file = net(*inputs()), to_file(adapter, str, torch.float32)
    assert max_relative_error(adapter, str, file)[0] < 1e-5
    parts, unknown = group_by_module(file)
    assert not unknown
    assert parts.keys() == set(PATHS)
    torch.manual_seed(0)
    other = Large()
    with torch.no_grad():
        for path in PATHS:
            weight = other.get_submodule(path).weight
            weight += weight_change(parts[path], weight)
    torch.testing.assert_close(out, other(*inputs()), rtol=1e-4, atol=1e-5)


@EACH
def test_every_tensor_trains_and_the_adapter_can_be_switched_off(options):
    net, adapter = large(options)
    moved_off(adapter)
    net(*inputs()).backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters().values())
    torch.manual_seed(0)
    with adapter.disabled():
        torch.testing.assert_close(net(*inputs()), Large()(*inputs()))


@EACH
def test_initial_values_are_those_of_the_seed_and_the_path(options):
    torch.manual_seed(3)
    first, again = large(options)[1].parameters(), large(options)[1].parameters()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("kind", ["glora", "oft", "boft", "diff", "tucker"])
def test_training_goes_on_from_a_file(kind):
    _, adapter = large(KINDS[kind])
    moved_off(adapter)
    file = to_file(adapter, str, torch.float32)
    changed = {"alpha": 1.5} if kind in ("glora", "tucker") else {}
    _, other = large({**KINDS[kind], **changed})
    other.load(to_training(other, str, file))
    assert max_relative_error(other, str, file)[0] < 1e-5


def test_half_precision_keeps_what_a_large_initial_product_would_hide():
    """A change far below bfloat16's resolution of the initial factors is in the file."""
    _, adapter = large(KINDS["pissa"])
    for parameter in adapter.parameters().values():
        parameter.data *= 1 + 1e-4
    assert max_relative_error(adapter, str, to_file(adapter, str, torch.bfloat16))[0] < 0.01
    ranks = {tensor.shape[0] for name, tensor in to_file(adapter, str, torch.bfloat16).items() if "lora_A" in name}
    assert ranks == {6}


def test_pissa_is_the_best_approximation_and_olora_orthonormal():
    torch.manual_seed(1)
    weight = torch.randn(40, 30) * 0.7 ** torch.arange(30)
    left, values, right = top_singular(weight, 5, torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close((left * values) @ right, (u[:, :5] * s[:5]) @ v[:5], rtol=1e-3, atol=1e-3)
    net = nn.Sequential(nn.Linear(30, 40))
    net[0].weight.data = weight
    down, up = inject(net, ["0"], NetworkConfig(rank=5, alpha=10.0, init="pissa"), seed=1).parameters().values()
    torch.testing.assert_close(up @ down * 2, (u[:, :5] * s[:5]) @ v[:5], rtol=1e-3, atol=1e-3)
    other = nn.Sequential(nn.Linear(30, 40))
    other[0].weight.data = weight
    down, up = inject(other, ["0"], NetworkConfig(rank=5, init="olora"), seed=1).parameters().values()
    torch.testing.assert_close(up.T @ up, torch.eye(5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((up @ down)[:, :5], weight[:, :5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["oft", "boft"])
def test_rotations_keep_angles_and_lengths(kind):
    net, adapter = large(KINDS[kind])
    moved_off(adapter)
    for path, layer in adapter.layers.items():
        base = layer.get_base_layer().weight.detach().double()
        values = {name: p.detach().double() for name, p in layer_parameters(layer).items()}
        turned = (base + trained_change(layer, values, base)).flatten(1)
        torch.testing.assert_close(turned.T @ turned, base.flatten(1).T @ base.flatten(1)), path
    assert net is adapter.root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "oft", "rank": 1}, "has 6 rows, which blocks of at most that size do not divide; use 2"),
        ({"kind": "boft", "rank": 4}, "2.n blocks of an even size up to that; use 6"),
        ({"init": "pissa", "rank": 7}, "use a rank up to 6"),
        ({"rank": 4, "dylora_unit": 3}, "use a divisor"),
    ],
)
def test_layers_that_cannot_have_it_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        large(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "oft", "alpha": 1.0}, "oft has none"),
        ({"kind": "glora", "dropout": 0.1}, "glora has no dropout"),
        ({"tucker": True, "rank_dropout": 0.1}, "or tucker"),
        ({"kind": "dora", "init": "pissa"}, "use default or gaussian"),
        ({"init": "olora", "scale_weight_norms": 1.0}, "another init"),
        ({"init": "singular", "init_from": "a.safetensors"}, "leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**options)


def test_factors_of_single_modules():
    net = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})
    network = NetworkConfig(kind="lokr", rank=64, lokr_factor=4, lokr_factors={"b": 8})
    shapes = {name: tuple(p.shape) for name, p in inject(net, ["a", "b"], network, seed=0).parameters().items()}
    assert shapes == {"a|lokr_w1": (4, 4), "a|lokr_w2": (16, 16), "b|lokr_w1": (8, 8), "b|lokr_w2": (8, 8)}


def test_dylora_trains_the_last_unit_and_uses_those_before_it():
    net, adapter = moved(NetworkConfig(rank=6, dylora_unit=2), ["first"])
    layer = adapter.layers["first"]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x, seen = inputs()[0], set()
    for step in range(20):
        adapter.set_draw(StepKey(seed=0, step=step, micro_batch=0))
        net.zero_grad()
        out = net.first(x)
        out.square().sum().backward()
        trained = [rank for rank in range(6) if down.grad[rank].any()]
        assert trained == [rank for rank in range(6) if up.grad[:, rank].any()]
        last = trained[-1] + 1
        assert trained == [last - 2, last - 1]
        expected = layer.get_base_layer()(x) + x @ down[:last].T @ up[:, :last].T
        torch.testing.assert_close(out, expected)
        seen.add(last)
    assert seen == {2, 4, 6}
    adapter.set_draw(None)
    torch.testing.assert_close(net.first(x), layer.get_base_layer()(x) + x @ down.T @ up.T)
    assert isinstance(layer.lora_dropout["nested"], NestedRanks)
