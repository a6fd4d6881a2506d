"""A run with validation.doctor is examined once, at its step, whether it was broken or not; `lora-loom doctor` measures the same later."""

import json

import pytest
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.doctor.report import read_diagnosis
from lora_loom.trainer.errors import RunError
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config

RUN = {
    "training": {"steps": 4, "batch_size": 6, "save_every": 2},
    "validation": {"doctor": True},
    "output": {"dtype": "float32"},
}


def test_an_examination_is_written_once_and_survives_a_stop(tmp_path):
    config = make_config("sd3", tmp_path, **RUN)
    train(config, host := SilentHost())
    folder = run_folder(config)
    whole = read_diagnosis(folder.path)
    assert whole["step"] == 4
    assert len(whole["images"]) == 6
    assert any("data doctor" in text for text in host.text)
    (folder.path / "doctor.json").unlink()
    train(config, SilentHost())
    assert read_diagnosis(folder.path) == whole, "a run that goes on makes up for it, with the same numbers"


def test_measuring_changes_nothing_in_the_run(tmp_path):
    plain = make_config("sd3", tmp_path, name="plain", **{**RUN, "validation": {}})
    examined = make_config("sd3", tmp_path, name="examined", **RUN)
    for config in (plain, examined):
        train(config, SilentHost())
    one, two = (run_folder(config).lora_file(None).read_bytes() for config in (plain, examined))
    assert one[-1000:] == two[-1000:]


def test_a_run_that_was_not_examined_is_read_later_from_its_lora_file(tmp_path):
    config = make_config("sd3", tmp_path, **RUN)
    train(config, SilentHost())
    folder = run_folder(config)
    during = read_diagnosis(folder.path)
    (folder.path / "doctor.json").unlink()
    shown = json.loads(CliRunner().invoke(app, ["doctor", str(folder.path), "--json"]).output.splitlines()[-1])
    assert shown["step"] == 4
    later = read_diagnosis(folder.path)
    for one, two in zip(during["images"], later["images"], strict=True):
        assert one["base"] == pytest.approx(two["base"], rel=1e-6)
        assert one["lora"] == pytest.approx(two["lora"], rel=1e-4)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "doctor.json").write_text('{"findings": [{}]}')
    with pytest.raises(RunError, match="delete it"):
        read_diagnosis(tmp_path)
