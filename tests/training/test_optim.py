"""Optimizers behind one table: options checked early, state through safetensors and JSON, bit for bit."""

import json
import sys

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lora_loom.trainer.choices import OPTIMIZERS, OptimizerChoice
from lora_loom.trainer.config.run import OptimizerConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.training.optim import (
    check_optimizer,
    clip_gradients,
    make_optimizer,
    own_average,
    set_learning_rate,
)
from lora_loom.trainer.training.optim_state import pack_state, unpack_state

IN_8_BITS = {name: {"min_8bit_size": 16} for name in OPTIMIZERS if name.endswith("8bit")}


def installed(name):
    """Whether its library is there; optional ones may be missing."""
    try:
        OPTIMIZERS[name].load()
    except (ImportError, AttributeError):
        return False
    return True


EACH = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if installed(name) else pytest.mark.skip("not installed")) for name in OPTIMIZERS],
)


def parameters():
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in ((16, 32), (8, 16))]


def gradients(params, step):
    source = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source)


def config(name, **changes):
    rate = 1.0 if OPTIMIZERS[name].finds_rate else 1e-2
    return OptimizerConfig(name=name, learning_rate=rate, options=IN_8_BITS.get(name, {}), **changes)


@EACH
def test_state_survives_files_bit_for_bit(name):
    straight, halved = parameters(), parameters()
    first = make_optimizer(straight, config(name))
    for step in range(24):
        gradients(straight, step)
        first.step()
    second = make_optimizer(halved, config(name))
    for step in range(12):
        gradients(halved, step)
        second.step()
    tensors = {}
    text = json.dumps(pack_state(second.state_dict(), "optimizer", tensors))
    third = make_optimizer(halved, config(name))
    third.load_state_dict(unpack_state(json.loads(text), load(save(tensors))))
    for step in range(12, 24):
        gradients(halved, step)
        third.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, halved, strict=True))


@EACH
def test_each_optimizer_descends(name):
    point = nn.Parameter(torch.full((16, 32), 3.0))
    optimizer = make_optimizer([point], config(name, weight_decay=0.0))
    for _ in range(60):
        loss = point.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert point.square().mean() < 9


def test_a_class_is_taken_by_its_path_with_all_arguments():
    mine, theirs = parameters(), parameters()
    settings = OptimizerConfig(
        name="torch.optim.NAdam",
        learning_rate=1e-2,
        weight_decay=0.1,
        options={"betas": [0.8, 0.9], "decoupled_weight_decay": True},
    )
    check_optimizer(settings)
    ours = make_optimizer(mine, settings)
    reference = torch.optim.NAdam(theirs, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True)
    for step in range(4):
        for values, optimizer in ((mine, ours), (theirs, reference)):
            gradients(values, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


class Noisy(torch.optim.SGD):
    """Draws random numbers, whose state nobody saves."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-3)


class Forgetful(torch.optim.SGD):
    """Counts steps where its state does not hold them."""

    def __init__(self, params, lr, **options):
        super().__init__(params, lr, **options)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["lr"] = 1e-2 / self.count
        super().step(closure)


class Pickled(torch.optim.SGD):
    """Keeps an object in its state."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["object"] = object()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}.Noisy", "cannot be resumed exactly .a continued run is another"),
        (f"{__name__}.Forgetful", "cannot be resumed exactly .a continued run is another"),
        (f"{__name__}.Pickled", "cannot be resumed exactly .*cannot be stored without pickle"),
        ("torch.optim.LBFGS", "learning_rate|weight_decay"),
        ("torch.optim.Rprop", r"optimizer\.weight_decay = 0\.01: torch\.optim\.Rprop has none; set it to 0"),
        ("torch.nn.Linear", "it is no optimizer of torch's interface"),
        ("torch.optim.Nothing", "has no attribute 'Nothing'"),
        ("nowhere.Adam", "No module named 'nowhere'; install its library"),
    ],
)
def test_a_class_that_cannot_be_resumed_or_used_is_refused(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Noisy.__module__])
    with pytest.raises(ConfigError, match=message):
        check_optimizer(OptimizerConfig(name=name))


def test_an_option_that_a_class_would_swallow_is_refused(monkeypatch):
    class Swallows(torch.optim.SGD):
        def __init__(self, params, lr=1e-3, weight_decay=0.0, **kwargs):
            super().__init__(params, lr, weight_decay=weight_decay)

    monkeypatch.setitem(OPTIMIZERS, "swallows", OptimizerChoice(help="x", make=Swallows))
    with pytest.raises(ConfigError, match="it has no argument betas"):
        check_optimizer(OptimizerConfig(name="swallows", options={"betas": [0.9, 0.99]}))


class Averaging(torch.optim.Optimizer):
    """SGD without a schedule, as arXiv 2405.15682 has it: it trains y = 0.1 z + 0.9 x, and x is the average of z."""

    def __init__(self, params, lr=1.0, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "training": False, "k": 0})

    def _turn(self, training):
        for group in self.param_groups:
            if group["training"] != training:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        with torch.no_grad():
                            p.lerp_(self.state[p]["z"], 1 - 0.9 if training else 1 - 1 / 0.9)
                group["training"] = training

    def train(self):
        self._turn(True)

    def eval(self):
        self._turn(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"], "a step with the weights of evaluation"
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                x = (p - 0.1 * z) / 0.9
                z -= group["lr"] * p.grad
                x = x + (z - x) / (group["k"] + 1)
                p.copy_(0.1 * z + 0.9 * x)
            group["k"] += 1


def test_the_average_of_a_schedule_free_optimizer_is_read_without_a_trace(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "averaging", OptimizerChoice(help="x", make=Averaging))
    settings = OptimizerConfig(name="averaging", learning_rate=0.1, weight_decay=0.0)
    looked_at, alone = parameters(), parameters()
    start = [p.detach().clone() for p in looked_at]
    optimizer, other = make_optimizer(looked_at, settings), make_optimizer(alone, settings)
    named, steps = {str(i): p for i, p in enumerate(looked_at)}, []
    for step in range(5):
        for values, one in ((looked_at, optimizer), (alone, other)):
            gradients(values, step)
            one.step()
        steps.append([p.grad.clone() for p in looked_at])
        average = own_average(optimizer, named)
    assert all(torch.equal(a, b) for a, b in zip(looked_at, alone, strict=True)), "bit for bit"
    for i, first in enumerate(start):
        z = [first - 0.1 * sum(grads[i] for grads in steps[: n + 1]) for n in range(5)]
        assert torch.allclose(average[str(i)], sum(z) / 5, atol=1e-5), "the mean of the points of plain SGD"
    assert own_average(make_optimizer(parameters(), OptimizerConfig(learning_rate=1.0)), named) is None
    with pytest.raises(ConfigError, match="averaging averages the weights by itself; set it to 0"):
        check_optimizer(settings, ema_decay=0.9)


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


@EACH
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
    with pytest.raises(ConfigError, match="did you mean 'adamw' or .*, or the path of a class"):
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
