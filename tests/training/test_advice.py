"""Settings that work against themselves are named, others are not."""

import pytest

from lora_loom.trainer.choices import OPTIMIZERS
from lora_loom.trainer.config.run import OptimizerConfig, ScheduleConfig
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.training.advice import advice
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
