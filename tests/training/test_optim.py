"""Optimizers behind one table: options checked early, state through safetensors and JSON, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lora_loom.trainer.choices import OPTIMIZERS
from lora_loom.trainer.config.run import OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.training.optim import (
    check_optimizer,
    clip_gradients,
    make_optimizer,
    pack_state,
    set_learning_rate,
    unpack_state,
)

OPTIONS = {"adamw8bit": {"min_8bit_size": 16}}


def parameters():
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in ((16, 32), (8, 16))]


def gradients(params, step):
    source = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source)


def config(name, **changes):
    rate = 1.0 if name == "prodigy" else 1e-2
    return OptimizerConfig(name=name, learning_rate=rate, options=OPTIONS.get(name, {}), **changes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_survives_files_bit_for_bit(name):
    straight, halved = parameters(), parameters()
    first = make_optimizer(straight, config(name))
    for step in range(6):
        gradients(straight, step)
        first.step()
    second = make_optimizer(halved, config(name))
    for step in range(3):
        gradients(halved, step)
        second.step()
    tensors = {}
    text = json.dumps(pack_state(second.state_dict(), "optimizer", tensors))
    third = make_optimizer(halved, config(name))
    third.load_state_dict(unpack_state(json.loads(text), load(save(tensors))))
    for step in range(3, 6):
        gradients(halved, step)
        third.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, halved, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_descends(name):
    point = nn.Parameter(torch.full((16, 32), 3.0))
    optimizer = make_optimizer([point], config(name, weight_decay=0.0))
    for _ in range(60):
        loss = point.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert point.square().mean() < 9


def test_adamw_is_torchs_in_one_kernel():
    mine, theirs, plain = parameters(), parameters(), parameters()
    ours = make_optimizer(mine, config("adamw", weight_decay=0.1))
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1, fused=True)
    by_tensor = torch.optim.AdamW(plain, lr=1e-2, weight_decay=0.1, foreach=False, fused=False)
    for step in range(4):
        for values, optimizer in ((mine, ours), (theirs, reference), (plain, by_tensor)):
            gradients(values, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(mine, plain, strict=True))


def test_an_optimizer_whose_user_chooses_the_kernel_gets_it():
    chosen = make_optimizer(parameters(), OptimizerConfig(learning_rate=1e-4, options={"foreach": True}))
    assert chosen.param_groups[0]["foreach"]
    assert not chosen.param_groups[0]["fused"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_and_rate_reach_the_groups(name, capsys):
    optimizer = make_optimizer(parameters(), config(name, weight_decay=0.25))
    set_learning_rate(optimizer, 0.125)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
    assert capsys.readouterr().out == "", "standard output belongs to --json"


def test_prodigys_own_estimate_is_reported():
    optimizer = make_optimizer(parameters(), config("prodigy"))
    assert set_learning_rate(optimizer, 1.0) == pytest.approx(optimizer.param_groups[0]["d"])


def test_unknown_names_options_and_missing_libraries(monkeypatch):
    with pytest.raises(ConfigError, match="did you mean 'adamw' or 'adamw8bit'"):
        check_optimizer(OptimizerConfig(name="adam"))
    with pytest.raises(ConfigError, match=r"optimizer\.options = .* adamw refuses it"):
        check_optimizer(OptimizerConfig(options={"beta3": 0.9}))
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    with pytest.raises(ConfigError, match="needs the library lion-pytorch: pip install lion-pytorch"):
        check_optimizer(OptimizerConfig(name="lion"))


def test_lists_become_the_tuples_that_optimizers_want():
    optimizer = make_optimizer(parameters(), OptimizerConfig(learning_rate=1e-4, options={"betas": [0.8, 0.9]}))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_clipping():
    [p] = [nn.Parameter(torch.zeros(4))]
    p.grad = torch.full((4,), 3.0)
    assert clip_gradients([p], 1.0).item() == pytest.approx(6.0)
    assert p.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    p.grad = torch.full((4,), 3.0)
    assert clip_gradients([p], 0.0).item() == pytest.approx(6.0)
    assert p.grad.norm().item() == pytest.approx(6.0)


def test_nothing_is_pickled():
    with pytest.raises(TypeError, match="without pickle"):
        pack_state({"x": object()}, "optimizer", {})
