"""The table of published sizes in docs/memory.md is what `python -m bench plans` says of this code."""

import re
from pathlib import Path

import pytest

from bench.network_sizes import SIZES
from bench.plans import CARDS, cell, plans

SIZE = {size.name: size for size in SIZES}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "memory.md"
ROW = re.compile(r"\| (.*B) (nf4|fp8|bf16), (512|1024) px \|(.*)\|$", re.MULTILINE)
FOUND = ROW.findall(DOCS.read_text(encoding="utf-8"))
ROWS = {(name, stored, int(side)): cells for name, stored, side, cells in FOUND if " GB" in cells}
CLAIMED = [("Flux 12B", "fp8", 1024, 8), ("Flux 12B", "nf4", 512, 8), ("Qwen-Image 20B", "fp8", 1024, 12)]


def figures(text):
    """(GB at most, seconds a step)."""
    assert text.endswith(" s"), text
    return float(text.split(" GB")[0]), float(text.removesuffix(" s").split(", ")[-1])


def stated(name, stored, side):
    """{GB of a card: what the table has}."""
    return {card: figures(text.strip()) for card, text in zip(CARDS, ROWS[name, stored, side].split("|"), strict=True)}


def assert_of_now(row):
    """To 10 %, as near as plans are; it is not written anew for every byte."""
    name, stored, side = row
    now = {gigabytes: figures(cell(plan)) for gigabytes, plan in plans(SIZE[name], stored, side)}
    for gigabytes, pair in stated(*row).items():
        assert pair == pytest.approx(now[gigabytes], rel=0.1)


def test_what_is_claimed_for_small_cards_is_in_the_table():
    for *row, gigabytes in CLAIMED:
        assert stated(*row)[gigabytes][0] <= gigabytes - 0.8, "the CUDA context takes the rest"


def test_a_row_is_what_the_planner_says():
    assert_of_now(("Z-Image 6B", "bf16", 512))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_is_what_the_planner_says(row):
    assert_of_now(row)
