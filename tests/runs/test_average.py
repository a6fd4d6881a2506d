"""training.ema_decay = "auto": what files hold, what is measured, and that earlier runs and other averages are left as they are."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig, TrainingConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.runs.settled import with_average
from lora_loom.trainer.training import loop
from lora_loom.trainer.training.loop import AVERAGED_FROM, Average, auto_decay
from tests.conftest import SilentHost, make_config
from tests.runs.test_schedule_free import averaging  # noqa: F401 - an optimizer that averages by itself


@pytest.fixture
def from_step_2(monkeypatch):
    monkeypatch.setattr(loop, "AVERAGED_FROM", 2)


def weighted(decays):
    """The share of each step in an average with these decays."""
    shares = []
    for decay in decays:
        shares = [*(share * decay for share in shares), 1 - decay]
    return shares


@pytest.mark.parametrize("steps", [300, 1000, 7000])
def test_the_average_is_over_the_last_ninth_of_the_steps_since_it_begins(steps):
    shares = weighted([auto_decay(step) for step in range(1, steps + 1)])
    assert sum(shares) == pytest.approx(1)
    age = sum(share * (steps - step) for step, share in enumerate(shares, 1))
    assert age == pytest.approx((steps - AVERAGED_FROM) / 10, rel=0.05)
    assert sum(shares[:AVERAGED_FROM]) < 1e-6


def test_before_it_begins_it_is_the_weights_bit_for_bit():
    values = {"a": torch.randn(7), "b": torch.randn(3, 2)}
    average = Average(values, "auto")
    for step in range(1, AVERAGED_FROM + 1):
        values = {name: value + torch.randn_like(value) for name, value in values.items()}
        average.update(values, step)
        assert all(average.values[name].equal(value) for name, value in values.items())
    average.update({name: value + 1 for name, value in values.items()}, AVERAGED_FROM + 1)
    assert torch.allclose(average.values["a"], values["a"] + 0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_the_sum_of_its_shares(dtype):
    decays = [min((1 + step) / (10 + step), 0.9) for step in range(1, 21)]
    steps = [torch.randn(5).to(dtype) for _ in decays]
    average = Average({"a": steps[0]}, 0.9)
    for number, value in enumerate(steps, 1):
        average.update({"a": value}, number)
    first, *shares = weighted([0.0, *decays])  # the initial value counts as a step before the first
    expected = first * steps[0].float() + sum(share * value.float() for share, value in zip(shares, steps, strict=True))
    assert torch.allclose(average.values["a"], expected, atol=1e-6)


def run_of(root, name="run", **training):
    return make_config(
        "sd3", root, name=name, optimizer={"learning_rate": 0.01}, data={"validation_split": 0.34}, output={"dtype": "float32"},
        training={"steps": 6, "save_every": 3, **training},
    )  # fmt: skip


@pytest.mark.usefixtures("from_step_2")
def test_the_file_holds_the_average_and_the_validation_loss_is_its_own(tmp_path):
    config = run_of(tmp_path)
    outcome = train(config, SilentHost())
    folder = run_folder(config)
    assert folder.read()["config"]["training"]["ema_decay"] == "auto"
    lines = [line for line in folder.read_metrics() if "held_out" in line]
    assert not any("held_out_ema" in line for line in lines)
    plain = run_of(tmp_path, "plain", ema_decay=0.0)
    alone = [line for line in (train(plain, SilentHost()), run_folder(plain).read_metrics())[1] if "held_out" in line]
    assert lines[0]["held_out"] == alone[0]["held_out"], "the base"
    assert lines[-1]["held_out"] != alone[-1]["held_out"]
    live = load_file(folder.checkpoints / "step-000006" / "adapter.safetensors")
    assert all(
        tensor.equal(load_file(run_folder(plain).checkpoints / "step-000006" / "adapter.safetensors")[name])
        for name, tensor in live.items()
    )
    held, other = load_file(outcome.lora), load_file(run_folder(plain).lora_file(None))
    assert any(not tensor.equal(other[name]) for name, tensor in held.items()), "training is the same, the file is not"


@pytest.mark.usefixtures("from_step_2")
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    straight = load_file(train(run_of(tmp_path, "straight"), SilentHost()).lora)
    train(run_of(tmp_path), SilentHost(stop_at=4))
    again = load_file(train(run_of(tmp_path), SilentHost()).lora)
    assert all(straight[name].equal(tensor) for name, tensor in again.items())


def test_an_earlier_run_goes_on_without_an_average(tmp_path):
    config = run_of(tmp_path, ema_decay=0.0)
    train(config, SilentHost())
    path = run_folder(config).path / "run.json"
    record = json.loads(path.read_text())
    for tables in (record["config"], record["fixed"]):
        del tables["training"]["ema_decay"]
    path.write_text(json.dumps(record))
    longer = replace(config, training=replace(config.training, ema_decay="auto", steps=8))
    assert train(longer, SilentHost()).step == 8
    assert run_folder(config).read()["config"]["training"]["ema_decay"] == 0.0


def settled(tmp_path, optimizer="adamw", **network):
    folder = RunFolder(tmp_path / "new")
    return with_average(TrainingConfig(), OptimizerConfig(name=optimizer), NetworkConfig(**network), folder).ema_decay


def test_what_averages_by_itself_or_is_a_whole_model_has_none(tmp_path):
    assert settled(tmp_path) == "auto"
    assert settled(tmp_path, kind="full") == 0.0
    assert settled(tmp_path, "averaging") == 0.0
    with pytest.raises(ConfigError, match="training.ema_decay = 'fast'"):
        TrainingConfig(ema_decay="fast")
