"""`bench.real` on a toy in place of a real model: every row is a valid run of its family, and the table has what was measured."""

import json
import sys

import pytest

from bench import real
from lora_loom.trainer.config.run import TrainConfig
from lora_loom.trainer.config.toml import parse
from tests.conftest import pictures, tiny_folder

GIVEN = {
    "name": "toy",
    "dataset": [{"folder": str(pictures()), "trigger": "ohwx"}, {"folder": str(pictures()), "role": "validation"}],
    "data": {"resolution": 64, "bucket_step": 32},
    "optimizer": {"learning_rate": 1.0},
    "training": {"steps": 2, "batch_size": 3},
}


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "z_image"])
def test_a_row_replaces_the_settings_and_keeps_model_and_images(family):
    for number, row in enumerate(real.rows_for(family).values()):
        config = parse(real.tables_of({**GIVEN, "model": {"base": "x"}}, row, number, 5), TrainConfig)
        assert config.optimizer.learning_rate != 1.0
        assert (config.training.steps, config.training.seed, config.dataset[0].trigger) == (2, 5, "ohwx")
        assert config.dataset[1].caption_dropout == 0


def test_cells_are_kept_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from lora_loom.trainer.config.toml_text import to_toml

    path = tmp_path / "real.toml"
    path.write_text(to_toml({**GIVEN, "model": {"base": str(tiny_folder("sd3"))}, "output": {"directory": str(tmp_path / "runs")}}))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["real", str(path), "--rows", "^ours, the defaults$|UI", "--seeds", "1"])
    real.main()
    cells = [json.loads(line) for line in real.CELLS.read_text().splitlines()]
    assert [cell["cell"] for cell in cells] == ["toy | ours, the defaults | 0", "toy | ai-toolkit, job of its UI | 0"]
    shown = capsys.readouterr().out
    assert f"| the base | {cells[0]['base']:.4f}" in shown
    real.main()
    assert len(real.CELLS.read_text().splitlines()) == 2, "nothing is measured twice"
