"""One ruler for the validation loss: the same base reads the same number, whatever a run trains with; a run of before keeps its own."""

import json
import shutil

import pytest

from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config, pictures

DATA = {
    "dataset": [{"folder": str(pictures())}, {"folder": str(pictures()), "role": "validation"}],
    "data": {"resolution": 64, "bucket_step": 32},
    "training": {"steps": 1, "save_every": 1},
}
WAYS = {
    "seed": {"training": {"steps": 1, "save_every": 1, "seed": 5}},
    "shift": {"objective": {"shift": 7.0}},
    "law and loss": {"objective": {"timestep_sampling": "uniform", "loss": "huber", "min_timestep": 0.3}},
}


def losses(folder, step):
    [line] = [line for line in folder.read_metrics() if line["step"] == step and "held_out" in line]
    return {name: value for name, value in line.items() if name.startswith("held_out")}


def go(tmp_path, name, **sections):
    config = make_config("sd3", tmp_path, name=name, **{**DATA, **sections})
    train(config, SilentHost())
    return run_folder(config)


def of_version_0_1(folder):
    record = folder.read()
    del record["ruler"]
    (folder.path / "run.json").write_text(json.dumps(record))
    (folder.checkpoints / "run.json").unlink()  # a copy came later


def test_the_base_reads_the_same_whatever_a_run_trains_with(tmp_path):
    usual = go(tmp_path, "usual")
    assert usual.read()["ruler"] == "fixed"
    base = losses(usual, 0)
    assert base["held_out"] != base["held_out_even"], "the family has a shift"
    for number, changes in enumerate(WAYS.values()):
        assert losses(go(tmp_path, f"way-{number}", **changes), 0) == base


@pytest.mark.parametrize("way", [way for way in WAYS if way != "law and loss"])
def test_a_run_of_before_goes_on_with_its_own_ruler(tmp_path, way):
    """Its numbers depend on seed and shift, as they did; both are in run.json, and a run that goes on measures as it began."""
    sections = {**DATA, **WAYS[way]}
    config = make_config("sd3", tmp_path, name="before", **sections)
    folder = run_folder(config)
    folder.path.mkdir(parents=True)
    train(config, SilentHost())
    fixed = losses(folder, 0)
    of_version_0_1(folder)
    folder.cut_metrics(-1)  # both steps are measured once more, by a run whose record names no ruler
    shutil.rmtree(folder.checkpoints)
    train(config, SilentHost())
    assert folder.read()["ruler"] == "run"
    own = losses(folder, 0)
    assert "held_out_even" not in own
    assert own["held_out"] != fixed["held_out"]
    longer = make_config(
        "sd3", tmp_path, name="before", **{**sections, "training": {**sections["training"], "steps": 2}}
    )
    train(longer, SilentHost())
    assert folder.read()["ruler"] == "run"
    assert "held_out_even" not in losses(folder, 2)
    assert losses(folder, 0) == own
