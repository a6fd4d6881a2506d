"""Settings that work against themselves are named, others are not."""

import pytest
from torch import nn

from lora_loom.trainer.choices import OPTIMIZERS
from lora_loom.trainer.config.run import NetworkConfig, OptimizerConfig, ScheduleConfig
from lora_loom.trainer.known_models.rows import ROWS
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.training.advice import advice
from lora_loom.trainer.training.rate import usual_rates
from tests.conftest import SilentHost, make_config


@pytest.mark.parametrize(
    ("optimizer", "schedule", "wanted"),
    [
        ({}, {}, ""),
        ({}, {"kind": "cosine", "warmup": 0.05}, ""),
        ({"name": "prodigy", "learning_rate": 1.0}, {"warmup": 10}, ""),
        ({"name": "prodigy", "learning_rate": 1.0}, {"kind": "cosine"}, "'cosine' falls while prodigy"),
        ({}, {"warmup": 50}, "takes 50 of 100 steps"),
        ({}, {"warmup": 0.49}, ""),
        ({}, {"warmup": 300}, "longer than the run of 100 steps, which ends at 33% of its learning rate"),
        ({"learning_rate": 9e-6}, {}, "9e-06 is outside"),
        ({"learning_rate": 1e-2}, {}, "0.01 is outside"),
        ({"name": "prodigy"}, {}, "0.0001 is outside"),
        ({"name": "lion", "learning_rate": 2e-3}, {}, "0.002 is outside"),
    ],
)
def test_what_is_said(optimizer, schedule, wanted):
    notes = advice(OptimizerConfig(**{"learning_rate": 1e-4, **optimizer}), ScheduleConfig(**schedule), 100)
    assert len(notes) == bool(wanted)
    assert all(wanted in note for note in notes)


def test_every_optimizer_has_a_usual_range():
    assert [name for name, entry in OPTIMIZERS.items() if entry.rates is None or entry.rates[0] >= entry.rates[1]] == []
    assert {entry.rates for entry in OPTIMIZERS.values() if entry.finds_rate} == {(0.1, 10.0)}


def test_a_run_says_it_when_it_starts(tmp_path):
    config = make_config("sd3", tmp_path, schedule={"warmup": 9}, training={"steps": 1, "save_every": 1})
    host = SilentHost()
    train(config, host)
    wanted = "note: schedule.warmup = 9 is longer than the run of 1 steps, which ends at 11% of its learning rate"
    assert any(line.startswith(wanted) for line in host.text)


@pytest.mark.parametrize(
    ("rate", "network", "is_usual"),
    [
        (4.5e-4, {}, True), (5e-5, {}, True), (4e-3, {}, True), (2e-5, {}, False), (8e-3, {}, False),
        (1e-3, {"alpha": 1.0}, True), (1e-4, {"alpha": 1.0}, False), (7.2e-3, {"alpha": 1.0}, True),
    ],
)  # fmt: skip
def test_a_rate_is_judged_by_the_network_and_its_alpha(rate, network, is_usual):
    """With alpha 1 of rank 16 a rate of 1e-4 is one of 6e-6, with which hardly anything is learnt."""
    optimizer = OptimizerConfig(learning_rate=rate)
    usual = usual_rates(nn.Linear(3072, 3072, device="meta"), NetworkConfig(**network), optimizer)
    notes = advice(optimizer, ScheduleConfig(), 100, usual=usual)
    assert [note for note in notes if "on a network of this width" in note] == notes
    assert (notes == []) == is_usual


@pytest.mark.parametrize("row", [row for row in ROWS if row.rate], ids=lambda row: row.name)
def test_the_rates_of_known_models_are_usual_ones(row):
    for width in (1280, 3072, 5120):
        low, high = usual_rates(nn.Linear(width, width, device="meta"), NetworkConfig(), OptimizerConfig())
        assert low <= row.rate.value <= high


def test_where_there_is_no_rule_the_optimizers_own_range_counts():
    assert usual_rates(nn.Linear(8, 8), NetworkConfig(kind="lokr"), OptimizerConfig()) is None
    assert usual_rates(nn.Linear(8, 8), NetworkConfig(), OptimizerConfig(name="prodigy", learning_rate=1.0)) is None
