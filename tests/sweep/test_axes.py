import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.config.checks import parse_sizes
from lora_loom.trainer.errors import ConfigError
from lora_loom.trainer.sweep.axes import parse_counts, parse_numbers, parse_samplers, parse_seeds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [1]),
        ("1,2,3", [1, 2, 3]),
        ("0.7-1.3 [4]", [0.7, 0.9, 1.1, 1.3]),
        (" -1 , 0.5", [-1, 0.5]),
        ("-1-1 [3]", [-1, 0, 1]),
        ("2-5 [1]", [2]),
    ],
)
def test_numbers(text, expected):
    assert parse_numbers("x", text) == pytest.approx(expected)


@given(low=st.floats(-5, 5), high=st.floats(-5, 5), count=st.integers(2, 40))
def test_ranges_include_both_ends_evenly(low, high, count):
    low, high = round(low, 3), round(high, 3)
    values = parse_numbers("x", f"{low:.3f}-{high:.3f} [{count}]")
    assert len(values) == count
    assert (values[0], values[-1]) == (low, pytest.approx(high, abs=1e-9))
    gaps = [b - a for a, b in itertools.pairwise(values)]
    assert gaps == pytest.approx([(high - low) / (count - 1)] * (count - 1), abs=1e-9)


def test_random_seeds_come_from_the_runs_seed():
    seeds = parse_seeds("x", "-1--1 [8]", 3)
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == parse_seeds("x", "-1--1 [8]", 3) != parse_seeds("x", "-1--1 [8]", 4)
    assert parse_seeds("x", "7,-1", 3) == [7, parse_seeds("x", "0,-1", 3)[1]]
    assert parse_seeds("x", "5-8 [4]", 0) == [5, 6, 7, 8]


@pytest.mark.parametrize("text", ["", "a", "1;2", "0.5-x [3]", "1-2 [0]", "1-2 [99999]", "nan", "inf"])
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="x = "):
        parse_numbers("x", text)


def test_sizes_counts_and_samplers():
    assert parse_sizes("x", "512x512, 768X512,") == [(512, 512), (768, 512)]
    assert parse_sizes("x", "") == []
    assert parse_counts("x", "10-30 [3]") == [10, 20, 30]
    assert parse_samplers("x", "euler/normal, heun / karras", ["euler", "heun"], ["normal", "karras"]) == [
        ("euler", "normal"),
        ("heun", "karras"),
    ]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_sizes, "512", "'512' is not a size"),
        (parse_sizes, "0x5", "is not a size"),
        (parse_counts, "0", "whole numbers from 1"),
        (parse_counts, "1-2 [3]", "whole numbers from 1"),
        (lambda n, t: parse_samplers(n, t, ["euler"], ["normal"]), "euler", "has no scheduler"),
        (lambda n, t: parse_samplers(n, t, ["euler"], ["normal"]), "eular/normal", "did you mean 'euler'"),
        (lambda n, t: parse_samplers(n, t, ["euler"], ["normal"]), "euler/x", "known: normal"),
    ],
)
def test_nonsense_in_other_lists(parse, text, message):
    with pytest.raises(ConfigError, match=message):
        parse("x", text)


def test_a_range_has_at_most_a_thousand_values():
    assert len(parse_numbers("x", "0-1 [1000]")) == 1000
    with pytest.raises(ConfigError, match="use 1 to 1000 values"):
        parse_numbers("x", "0-1 [1001]")
