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


def stated(name, stored, side):
    """{GB: what the table has}; it leaves "streamed" out where it has said it before."""
    cells = [text.strip().replace(" streamed", "") for text in ROWS[name, stored, side].split("|")]
    return dict(zip(CARDS, cells, strict=True))


def of_now(name, stored, side):
    return {gigabytes: cell(plan).replace(" streamed", "") for gigabytes, plan in plans(SIZE[name], stored, side)}


def test_what_is_claimed_for_small_cards_is_in_the_table():
    for *row, gigabytes in CLAIMED:
        peak = float(stated(*row)[gigabytes].split(" GB")[0])
        assert peak <= gigabytes - 0.8, "the CUDA context takes the rest"


def test_a_row_is_what_the_planner_says():
    row = ("Z-Image 6B", "bf16", 512)
    assert of_now(*row) == stated(*row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_is_what_the_planner_says(row):
    assert of_now(*row) == stated(*row)
