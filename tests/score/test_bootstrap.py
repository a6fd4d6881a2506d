"""Ranking laws: a planted best is found, noise gives no winner, intervals are as wide as they should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lora_loom.trainer.data.intervals import student_quantile
from lora_loom.trainer.score.bootstrap import MIN_UNITS, rank

NAMES = ["base", "step 1", "step 2", "step 3"]


def losses(seed, units=8, gap=0.0, best=2):
    """Images differ much, candidates by `gap`, and every measurement has noise of 1."""
    source = np.random.default_rng(seed)
    values = source.normal(0, 30, units) + source.normal(0, 1, (len(NAMES), units))
    values[best] -= gap
    return values


@given(seed=st.integers(0, 10_000), best=st.integers(0, 3))
@settings(max_examples=25)
def test_a_planted_best_is_found_although_images_differ_more_than_candidates(seed, best):
    ranking = rank(NAMES, losses(seed, gap=6.0, best=best), lower_is_better=True)
    assert ranking.first.name == NAMES[best]
    assert ranking.is_clear
    assert (ranking.first.rank_low, ranking.first.rank_high) == (1, 1)
    assert ranking.first.share_best > 0.99


@pytest.mark.parametrize("units", [5, 8, 20])
def test_noise_alone_has_no_clear_winner(units):
    clear = sum(rank(NAMES, losses(seed, units), lower_is_better=True).is_clear for seed in range(150))
    assert clear / 150 <= 0.05, "at most as often as the interval's level says"


def test_a_single_pair_is_called_clear_about_as_often_as_the_level_says():
    clear = 0
    for seed in range(200):
        ranking = rank(["a", "b"], losses(seed, 10)[:2], lower_is_better=True)
        clear += ranking.is_clear
    assert 0.01 <= clear / 200 <= 0.08


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25)
def test_turning_the_sign_turns_nothing_else(seed):
    values = losses(seed, gap=1.0)
    down, up = rank(NAMES, values, lower_is_better=True), rank(NAMES, -values, lower_is_better=False)
    assert [place.name for place in down.places] == [place.name for place in up.places]
    assert down.tied == up.tied
    for name, lead in down.leads.items():
        assert lead == pytest.approx(up.leads[name])
    assert sum(place.share_best for place in down.places) == pytest.approx(1)


def test_few_measurements_are_never_clear():
    ranking = rank(["a", "b"], [[0.0] * (MIN_UNITS - 1), [1.0] * (MIN_UNITS - 1)], lower_is_better=True)
    assert ranking.first.name == "a"
    assert ranking.tied == ("b",)


def test_equal_candidates_are_tied():
    ranking = rank(["a", "b"], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 2, lower_is_better=True)
    assert ranking.tied == ("b",)
    assert ranking.leads["b"] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("freedom", "off"), [(4, 3e-3), (5, 2e-3), (9, 2e-4), (30, 1e-5), (200, 1e-6)])
def test_student_quantiles(freedom, off):
    """The series is as good as its next term, which falls with the fifth power of the degrees of freedom."""
    assert student_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=off)


def test_holes_are_refused():
    with pytest.raises(ValueError, match="finite numbers"):
        rank(["a", "b"], [[1.0, float("nan")], [1.0, 2.0]], lower_is_better=True)


def test_one_candidate_alone_is_no_winner():
    ranking = rank(["a"], [[1.0] * 8], lower_is_better=True)
    assert ranking.first.name == "a"
    assert ranking.tied == ()
    assert not ranking.is_clear


@pytest.mark.parametrize(
    ("names", "values"),
    [(["a", "b"], [[], []]), ([], []), (["a", "b"], [[1.0, 2.0]]), (["a"], [[1.0, float("nan")]]), (["a"], [1.0, 2.0])],
)
def test_candidates_without_a_number_for_every_unit_are_refused(names, values):
    with pytest.raises(ValueError, match="need one row of finite numbers each"):
        rank(names, values, lower_is_better=True)
