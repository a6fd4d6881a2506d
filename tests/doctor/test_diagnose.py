"""The findings of the data doctor: planted faults are named, with their interval, and an even set is left in peace."""

import random
from math import exp, sqrt

import pytest

from lora_loom.trainer.doctor.diagnose import diagnose, falls, interval, lines
from lora_loom.trainer.doctor.examine import DRAWS, Examined, examination_step, passes


def image(name, rng, *, fall=0.5, rival=1.6, base=1.0, caption=None, **changes):
    """An image whose loss falls by this share, and that another caption makes worse by this factor."""
    levels = [base * 2.0**-draw * rng.uniform(0.9, 1.1) for draw in range(DRAWS)]
    made = {
        "name": name,
        "caption": caption or f"a {name}",
        "uses": 1,
        "base": levels,
        "lora": [one * (1 - fall) * rng.uniform(0.95, 1.05) for one in levels],
        "rival": "a rival",
        "with_rival": [one * rival * rng.uniform(0.95, 1.05) for one in levels],
        "nearest": "other",
        "distance": 0.8,
    }
    return Examined(**{**made, **changes})


def even(rng, count=12):
    return [image(f"image{n}", rng) for n in range(count)]


def kinds(images):
    return {(finding.kind, *finding.images) for finding in diagnose(images)}


@pytest.mark.parametrize("seed", range(20))
def test_an_even_set_has_no_finding(seed):
    assert diagnose(even(random.Random(seed))) == []


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"rival": 0.7}, "caption"),
        ({"fall": -0.3}, "fights"),
        ({"fall": 0.05}, "foreign"),
        ({"fall": 0.05, "base": 0.2}, "known"),
        ({"distance": 0.05, "nearest": "image3"}, "double"),
    ],
)
def test_a_planted_fault_is_named_and_nothing_else(changes, kind):
    rng = random.Random(0)
    found = diagnose([*even(rng), image("odd", rng, **changes)])
    assert [finding.kind for finding in found] == [kind]
    assert "odd" in found[0].images


def test_a_pair_of_doubles_is_said_once():
    rng = random.Random(0)
    twins = [image("a", rng, nearest="b", distance=0.01), image("b", rng, nearest="a", distance=0.01)]
    assert kinds([*even(rng), *twins]) == {("double", "a", "b")}


def test_a_caption_that_takes_most_of_an_epoch_is_over_represented():
    rng = random.Random(0)
    crowd = [image(f"hat{n}", rng, caption="a hat", uses=10) for n in range(2)]
    assert kinds([*even(rng), *crowd]) == {("crowd", "hat0", "hat1")}


def test_nothing_is_said_of_few_images_or_of_a_lora_that_has_not_learnt():
    rng = random.Random(0)
    few = [image("a", rng), image("b", rng), image("odd", rng, fall=-0.5)]
    assert diagnose(few) == []
    assert "too few" in lines([], len(few), 7)[0]
    assert diagnose([*(image(f"image{n}", rng, fall=0.01) for n in range(8)), image("odd", rng, fall=-0.5)]) == []


def test_the_interval_is_students_of_the_logarithms():
    """A hand calculation: 0.1, 0.2, 0.3 have the standard deviation 0.1."""
    found = interval(falls([1.0, 1.0, 1.0], [exp(-0.1), exp(-0.2), exp(-0.3)]))
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(4.303 * 0.1 / sqrt(3))


def test_the_examination_is_after_five_epochs_or_at_the_end():
    assert examination_step(18.0, 1000) == 90
    assert examination_step(18.0, 60) == 60
    assert examination_step(0.01, 100) == 1
    assert passes(10) == 10 * (3 * DRAWS + 8)
