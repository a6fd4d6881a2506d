"""What an adapter's options do to single modules: ranks, rates, dropouts, limits, initial values."""

import re

import pytest
import torch
from torch import nn

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.families.flux import TARGETS
from lora_loom.trainer.lora.adapter import inject
from lora_loom.trainer.lora.dropout import dropped_modules
from lora_loom.trainer.lora.state_dict import max_relative_error, to_file
from lora_loom.trainer.seeding import StepKey
from lora_loom.trainer.training.optim import RATE_SCALE, check_optimizer, optimizer_of
from tests.lora.test_adapter import PATHS, Net, inputs


def moved(network, paths=PATHS):
    """A network with an adapter whose parameters are off their initial values."""
    net = Net()
    adapter = inject(net, paths, network, seed=1)
    source = torch.Generator().manual_seed(3)
    for parameter in adapter.parameters().values():
        parameter.data += torch.randn(parameter.shape, generator=source) * 0.2
    return net, adapter


def ranks_of(adapter):
    return {path: layer.r["default"] for path, layer in adapter.layers.items()}


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_ranks_and_alphas_of_single_modules(kind):
    network = NetworkConfig(
        kind=kind, rank=3, alpha=6.0, conv_rank=2, conv_alpha=1.0,
        module_ranks={"last|first": 1, "^first$": 2}, module_alphas={"first": 5.0},
    )  # fmt: skip
    _, adapter = moved(network)
    assert ranks_of(adapter) == {"conv": 2, "first": 2, "last": 1}
    assert {path: layer.scaling["default"] for path, layer in adapter.layers.items()} == {
        "conv": 0.5, "first": 2.5, "last": 6.0,
    }  # fmt: skip
    file = to_file(adapter, str, torch.float32)
    assert max_relative_error(adapter, str, file)[0] < 1e-5


def test_without_an_alpha_each_rank_is_its_own():
    adapter = inject(Net(), PATHS, NetworkConfig(rank=3, module_ranks={"last": 1}, conv_rank=2), seed=1)
    assert ranks_of(adapter) == {"conv": 2, "first": 3, "last": 1}
    assert {layer.scaling["default"] for layer in adapter.layers.values()} == {1.0}


def test_kohyas_conv_dim_leaves_convolutions_of_1_by_1():
    net = nn.ModuleDict({"small": nn.Conv2d(4, 4, 1), "large": nn.Conv2d(4, 4, 3)})
    assert ranks_of(inject(net, ["large", "small"], NetworkConfig(rank=3, conv_rank=2), seed=0)) == {
        "large": 2,
        "small": 3,
    }


def test_whole_and_decomposed_factors_of_lokr():
    plain, whole, both = (
        inject(nn.Sequential(nn.Linear(64, 64)), ["0"], NetworkConfig(kind="lokr", rank=2, alpha=1.0, **more), seed=0)
        for more in ({}, {"lokr_full_matrix": True}, {"lokr_decompose_both": True, "lokr_factor": 8})
    )
    names = [[name.partition("|")[2] for name in one.parameters()] for one in (plain, whole, both)]
    assert names == [
        ["lokr_w1", "lokr_w2_a", "lokr_w2_b"],
        ["lokr_w1", "lokr_w2"],
        ["lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"],
    ]
    assert whole.layers["0"].scaling["default"] == 1  # LyCORIS: alpha has no effect on whole matrices


def test_rank_dropout_leaves_out_columns_of_the_product_for_each_sample():
    network = NetworkConfig(rank=4, rank_dropout=0.5)
    net, adapter = moved(network, ["first"])
    layer = adapter.layers["first"]
    x = torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0))
    base = layer.get_base_layer()(x)
    plain = net.first(x) - base
    adapter.set_draw(StepKey(seed=0, step=2, micro_batch=1))
    dropped = net.first(x) - base
    assert torch.equal(dropped, net.first(x) - base)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    parts = torch.einsum("bti,ri,or->brto", x, down, up)  # what each rank adds
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 4)  # kept ranks count twice
    sums = torch.einsum("mr,brto->mbto", masks, parts)
    errors = (sums - dropped).abs().amax((2, 3))
    assert errors.min(0).values.max() < 1e-5
    assert len(errors.argmin(0).unique()) > 8  # samples differ
    assert ((dropped.mean(0) - plain.mean(0)).norm() / plain.mean(0).norm()) < 0.7


def test_module_dropout_leaves_modules_out_and_keeps_one():
    network = NetworkConfig(kind="lokr", rank=2, module_dropout=0.4)
    _, adapter = moved(network)
    out = {}
    for step in range(12):
        draw = StepKey(seed=0, step=step, micro_batch=0)
        adapter.set_draw(draw)
        out[step] = frozenset(path for path, layer in adapter.layers.items() if layer.disable_adapters)
        assert out[step] == dropped_modules(PATHS, 0.4, draw)
    assert len(set(out.values())) > 2
    adapter.set_draw(None)
    assert not any(layer.disable_adapters for layer in adapter.layers.values())
    keys = [StepKey(seed=0, step=step, micro_batch=0) for step in range(400)]
    shares = [len(dropped_modules(PATHS, 0.3, key)) for key in keys]
    assert sum(shares) / 1200 == pytest.approx(0.3, abs=0.04)
    assert max(len(dropped_modules(PATHS, 0.99, key)) for key in keys) == 2


def test_changes_with_too_large_a_norm_are_scaled_to_it():
    network = NetworkConfig(rank=2, alpha=4.0, scale_weight_norms=1.0)
    _, adapter = moved(network)

    def changes():
        return {
            path: layer.lora_B["default"].weight.flatten(1) @ layer.lora_A["default"].weight.flatten(1) * 2
            for path, layer in adapter.layers.items()
        }

    before = changes()
    norms = {path: change.norm().item() for path, change in before.items()}
    limit = sorted(norms.values())[1] * 0.9
    assert adapter.scale_norms(limit) == 2
    for path, change in changes().items():
        expected = before[path] * min(1, limit / norms[path])
        torch.testing.assert_close(change, expected)


def test_gaussian_initial_values():
    net = nn.Sequential(nn.Linear(4000, 8))
    adapter = inject(net, ["0"], NetworkConfig(rank=8, init="gaussian"), seed=1)
    down, up = adapter.parameters().values()
    assert down.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert not up.any()


def rates(network, **scales):
    """{parameter: factor on the learning rate} in the optimizer of a network's adapter."""
    parameters = inject(Net(), PATHS, network, seed=1).parameters()
    optimizer = optimizer_of(parameters, OptimizerConfig(learning_rate=0.5), network, scales)
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        names[id(parameter)]: group.get(RATE_SCALE, 1.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_rates_of_loraplus_and_of_single_modules_multiply():
    found = rates(
        NetworkConfig(rank=2, loraplus_lr_ratio=16.0, module_rates={"first|last": 3.0, "last": 0.5}), conv=0.1
    )
    assert found == pytest.approx({
        "conv|lora_A.weight": 0.1, "conv|lora_B.weight": 1.6,
        "first|lora_A.weight": 3, "first|lora_B.weight": 48,
        "last|lora_A.weight": 0.5, "last|lora_B.weight": 8,
    })  # fmt: skip


def test_one_group_where_nothing_is_asked():
    assert set(rates(NetworkConfig(rank=2)).values()) == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "loha", "rank_dropout": 0.1}, "loha has no rank_dropout"),
        ({"kind": "dora", "scale_weight_norms": 1.0}, "dora has no scale_weight_norms"),
        ({"rank_dropout": 1.0}, "use 0 up to below 1"),
        ({"module_ranks": {"a": 0}}, "use 1 to 16384"),
        ({"module_rates": {"a": 0.0}}, "use a number above 0"),
        ({"loraplus_lr_ratio": 0.5}, "use 1"),
        ({"kind": "lokr", "lokr_full_matrix": True, "lokr_decompose_both": True}, "not decomposed"),
        ({"kind": "lokr", "lokr_full_matrix": True, "conv_rank": 2}, "whole matrices have no rank"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**changes)


def test_a_pattern_that_is_none_is_refused_with_the_options_name():
    with pytest.raises(ConfigError, match="network.module_ranks"):
        inject(Net(), PATHS, NetworkConfig(module_ranks={"(": 2}), seed=1)


def test_optimizers_that_find_one_rate_refuse_several():
    prodigy = OptimizerConfig(name="prodigy", learning_rate=1.0)
    with pytest.raises(ConfigError, match="loraplus_lr_ratio.*finds one rate"):
        check_optimizer(prodigy, NetworkConfig(loraplus_lr_ratio=16.0))
    check_optimizer(prodigy, NetworkConfig())


def test_grouped_convolutions_refuse_what_they_have_not():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ConfigError, match="convolution with groups"):
        inject(net, ["0"], NetworkConfig(rank=2, rank_dropout=0.2), seed=1)


def test_a_draw_changes_nothing_without_dropout():
    net, adapter = moved(NetworkConfig(rank=2))
    plain = net(*inputs())
    adapter.set_draw(StepKey(seed=0, step=1, micro_batch=0))
    assert torch.equal(net(*inputs()), plain)


WORDS = {
    "mmdit": ["transformer_blocks.3.attn.to_q", "transformer_blocks.3.attn.to_out.0"],
    "context": ["transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3.attn.to_add_out"],
    "context+ffs": [
        "transformer_blocks.3.attn.add_q_proj", "transformer_blocks.3.attn.to_add_out",
        "transformer_blocks.3.ff_context.net.0.proj", "transformer_blocks.3.ff_context.net.2",
    ],
    "tiny": ["single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"],
    "nano": ["single_transformer_blocks.7.proj_out"],
}  # fmt: skip
PATHS_OF_FLUX = sorted({path for paths in WORDS.values() for path in paths} | {"single_transformer_blocks.8.proj_out"})


@pytest.mark.parametrize("word", WORDS)
def test_the_guides_words_for_target_modules_of_flux(word):
    found = [path for path in PATHS_OF_FLUX if re.search(TARGETS[word].pattern, path)]
    assert sorted(found) == sorted(WORDS[word])
