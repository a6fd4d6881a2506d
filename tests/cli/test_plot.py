"""`lora-loom plot` draws the schedule of a file that names nothing that exists."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app

TOML = """name = "cat"
model.base = "nowhere"
dataset = [{folder = "nowhere"}]
optimizer.learning_rate = 2e-4
schedule = {kind = "warm_restarts", cycles = 2, cycle_warmup = 5, cycle_decay = 0.5}
training.steps = 100
"""


@pytest.fixture
def plotted(tmp_path):
    def run(*more):
        path = tmp_path / "run.toml"
        path.write_text(TOML)
        return CliRunner().invoke(app, ["plot", str(path), "-o", str(tmp_path / "plot.png"), *more])

    return run


def test_the_rates_are_drawn_and_listed(plotted, tmp_path):
    result = json.loads(plotted("--json").output.splitlines()[-1])
    rates = result["rates"]
    assert (len(rates), rates[4], rates[54]) == (100, 2e-4, 1e-4)
    assert result["plot"] == str(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 10, "axes, a line, its letters"
    assert "step       1: 4e-05" in plotted().output


def test_what_works_against_itself_is_said(plotted):
    assert "schedule.warmup = 2400 is longer than the run" in plotted("--set", "schedule.warmup=2400").output


def test_only_a_png_is_written(plotted, tmp_path):
    result = plotted("-o", str(tmp_path / "plot.toml"))
    assert result.exit_code == 2
    assert "end it in .png" in result.output
