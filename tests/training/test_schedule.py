"""Learning-rate laws: closed forms with known values, ends and continuity."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.choices import LR_SCHEDULES
from lora_loom.trainer.config.run import ScheduleConfig
from lora_loom.trainer.training.schedule import lr_factor, warmup_steps


def curve(total=100, **options):
    config = ScheduleConfig(**options)
    return [lr_factor(step, total, config) for step in range(total)]


def test_constant():
    assert set(curve(kind="constant")) == {1.0}


def test_linear_and_cosine_worked_values():
    assert curve(kind="linear")[25] == pytest.approx(0.75)
    assert curve(kind="cosine")[50] == pytest.approx(0.5)
    assert curve(kind="cosine")[25] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_polynomial():
    assert curve(kind="polynomial", power=2.0)[50] == pytest.approx(0.25)
    assert curve(kind="polynomial", power=1.0) == curve(kind="linear")


def test_restarts_jump_back_to_the_top():
    values = curve(kind="restarts", cycles=4)
    assert [values[i] for i in (0, 25, 50, 75)] == [1.0] * 4
    assert values[24] < 0.01
    assert curve(kind="restarts", cycles=1) == pytest.approx(curve(kind="cosine"))


def test_min_lr_ratio():
    values = curve(kind="cosine", min_lr_ratio=0.1)
    assert values[0] == 1.0
    assert 0.1 < values[-1] < 0.101


def test_warmup_as_share_and_as_steps():
    assert warmup_steps(ScheduleConfig(warmup=0.1), 200) == 20
    assert warmup_steps(ScheduleConfig(warmup=15), 200) == 15
    assert warmup_steps(ScheduleConfig(warmup=1), 200) == 1, "one step, not the whole run"
    assert warmup_steps(ScheduleConfig(warmup=0.999), 200) == 200
    assert warmup_steps(ScheduleConfig(warmup=2), 200) == 2
    values = curve(kind="linear", warmup=10)
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == 1.0


@given(
    kind=st.sampled_from(sorted(LR_SCHEDULES)),
    total=st.integers(1, 300),
    warmup=st.floats(0, 0.9),
    cycles=st.integers(1, 5),
    power=st.floats(0.2, 4),
    min_lr_ratio=st.floats(0, 1),
)
def test_every_step_trains_and_none_exceeds_the_peak(kind, total, warmup, cycles, power, min_lr_ratio):
    config = ScheduleConfig(kind=kind, warmup=warmup, cycles=cycles, power=power, min_lr_ratio=min_lr_ratio)
    for step in range(total):
        assert 0 < lr_factor(step, total, config) <= 1 + 1e-12
