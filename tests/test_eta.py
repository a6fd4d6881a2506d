"""Time left: exact for a steady pace, unknown before there is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_loom.trainer.eta import Eta, duration


@given(
    start=st.integers(0, 50),
    total=st.integers(60, 500),
    seconds=st.floats(0.01, 100),
    jumps=st.lists(st.integers(1, 9), max_size=5),
)
def test_a_steady_pace_is_told_exactly(start, total, seconds, jumps):
    now = 5.0
    pace, done = Eta(lambda: now), start
    assert pace.left("images", done, total) is None
    for jump in jumps:
        done, now = min(total, done + jump), now + jump * seconds
        assert pace.left("captions", 0, 10) is None, "another name is counted apart"
        assert pace.left("images", done, total) == pytest.approx((total - done) * seconds)
    if done > start:
        assert pace.left("images", start, total) is None, "counting has begun anew"


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (12600, "3.5 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text
