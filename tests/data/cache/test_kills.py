"""A few of the kills of `bench/kills.py`, which has a hundred."""

import os

import pytest

from bench.data import write_pictures
from bench.kills import IN_FLIGHT, disturbed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_while_caching_cost_at_most_what_was_in_flight(tmp_path):
    write_pictures(tmp_path / "images", 70, side=64)
    found = disturbed(tmp_path, kills=5)
    assert found["kills"] == 5
    assert found["bit for bit as undisturbed"] == found["caches filled"] >= 1
    assert found["most items encoded again"] <= IN_FLIGHT
