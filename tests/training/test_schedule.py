"""Learning-rate laws: closed forms with known values, ends and continuity."""

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.choices import LR_SCHEDULES
from lora_loom.trainer.config.run import ScheduleConfig
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.training.schedule import check_schedule, lr_factor, warmup_steps


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
    cycle_warmup=st.floats(0, 20),
    cycle_decay=st.floats(0.1, 1),
    cycle_growth=st.floats(0.5, 3),
    decay=st.floats(0.01, 20),
)
def test_every_step_trains_and_none_exceeds_the_peak(total, **options):
    config = ScheduleConfig(**options)
    for step in range(total):
        assert 0 < lr_factor(step, total, config) <= 1 + 1e-12


def by_reference(make, total, **options):
    """The factors of a schedule of torch's interface, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, factors = make(optimizer, **options), []
    for _ in range(total):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


@pytest.mark.parametrize("growth", [1, 2])
def test_warm_restarts_without_warm_ups_are_torchs(growth):
    total = 20 * sum(growth**n for n in range(3))
    mine = curve(total, kind="warm_restarts", cycles=3, cycle_growth=growth, min_lr_ratio=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    assert mine == pytest.approx(by_reference(reference, total, T_0=20, T_mult=growth, eta_min=0.1))


def test_each_cycle_of_warm_restarts_rises_to_a_lower_peak():
    """max * gamma ** cycle, a linear rise, half a cosine (katsura-jp/pytorch-cosine-annealing-with-warmup), by hand."""
    values = curve(90, kind="warm_restarts", cycles=3, cycle_warmup=5, cycle_decay=0.5)
    for cycle, peak in enumerate((1.0, 0.5, 0.25)):
        part = values[30 * cycle : 30 * cycle + 30]
        assert part[:5] == pytest.approx([peak * (n + 1) / 5 for n in range(5)])
        assert part[5:] == pytest.approx([peak * (1 + math.cos(math.pi * n / 25)) / 2 for n in range(25)])
    assert curve(90, kind="warm_restarts", cycles=3, cycle_warmup=1 / 6, cycle_decay=0.5) == values, "as a share"


def test_the_runs_own_warm_up_takes_the_place_of_the_first_cycles():
    values = curve(100, kind="warm_restarts", cycles=2, cycle_warmup=5, warmup=20)
    assert values[:21] == pytest.approx([*((n + 1) / 20 for n in range(20)), 1.0])
    assert values[60:65] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("warmup", "timescale"), [(10, None), (0, None), (10, 25)])
def test_inverse_sqrt_is_that_of_transformers(warmup, timescale):
    mine = curve(100, kind="inverse_sqrt", warmup=warmup, timescale=timescale or 0)
    shift = {"timescale": timescale} if timescale else {}
    theirs = by_reference(transformers.get_inverse_sqrt_schedule, 100, num_warmup_steps=warmup, **shift)
    assert mine[warmup:] == pytest.approx(theirs[warmup:])


def test_wsd_is_that_of_transformers():
    theirs = by_reference(transformers.get_wsd_schedule, 100, num_warmup_steps=10, num_stable_steps=60, num_decay_steps=30, min_lr_ratio=0.1)  # fmt: skip
    mine = curve(100, kind="wsd", warmup=10, decay=30, min_lr_ratio=0.1)
    assert mine[10:] == pytest.approx(theirs[10:])
    assert curve(100, kind="wsd", warmup=10, decay=1 / 3, min_lr_ratio=0.1) == mine, "a share of the steps after it"


def test_rex_and_sine_worked_values():
    assert [curve(kind="rex")[n] for n in (0, 50, 80)] == pytest.approx([1.0, 2 / 3, 1 / 3])
    assert [curve(kind="sine", cycles=2)[n] for n in (0, 12, 25, 37, 50)] == pytest.approx(
        [0.5, 0.5 + 0.5 * math.sin(0.48 * math.pi), 0.5, 0.5 + 0.5 * math.sin(1.48 * math.pi), 0.5], abs=0.01
    )


def test_a_class_of_a_library_is_followed_after_the_warm_up():
    options = {"max_lr": 1.0, "total_steps": "steps", "pct_start": 0.3}
    mine = curve(60, kind="torch.optim.lr_scheduler.OneCycleLR", warmup=10, options=options)
    theirs = by_reference(torch.optim.lr_scheduler.OneCycleLR, 50, max_lr=1.0, total_steps=50, pct_start=0.3, cycle_momentum=False)  # fmt: skip
    assert mine[10:] == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("nowhere.at.All", {}, "No module named 'nowhere'"),
        ("torch.optim.lr_scheduler.Nothing", {}, "has no attribute 'Nothing'"),
        ("torch.nn.Linear", {}, "it is no LRScheduler of torch"),
        ("torch.optim.lr_scheduler.StepLR", {"sizes": 3}, "unexpected keyword argument 'sizes'"),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", {}, "missing 1 required positional argument"),
        (
            "torch.optim.lr_scheduler.MultiplicativeLR",
            {"lr_lambda": 1.0},
            "lr_lambda should be a function, but got float",
        ),
        ("torch.optim.lr_scheduler.StepLR", {"step_size": 2, "gamma": -1.0}, r"gives the factor -1\.0 after 2 steps"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        check_schedule(ScheduleConfig(kind=kind, options=options), 10)
