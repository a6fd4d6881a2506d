"""Damaged files of a run: one plain line, and never for other runs."""

import json
import shutil

import pytest
from PIL import Image

from lora_loom.trainer.errors import LoomError, RunError
from lora_loom.trainer.runs.headless import train
from lora_loom.trainer.runs.run_folder import RunFolder
from lora_loom.trainer.sweep.cells import is_whole, sheet_from_dict
from tests.conftest import SilentHost, make_config

NO_RECORDS = (b"", b"{}", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 100_000, b'{"config": null}', b'{"updated": null}')


@pytest.mark.parametrize("content", NO_RECORDS, ids=lambda content: repr(content[:12]))
def test_a_record_that_is_none_is_one_plain_line(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json cannot be read .*choose another name"):
        RunFolder(tmp_path).read()


def test_lines_of_metrics_that_are_no_records_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'5\n{"a": 1}\n\xff\n{"step": 1}\n{"step": "x"}\n{"step": 2, "lo')
    assert RunFolder(tmp_path).read_metrics() == [{"step": 1}]


def test_a_cell_counts_as_there_only_with_every_byte(tmp_path):
    path = tmp_path / "cell.png"
    assert not is_whole(path)
    Image.effect_noise((32, 32), 50).save(path)
    content = path.read_bytes()
    assert is_whole(path)
    half = len(content) // 2
    for damaged in (
        b"",
        content[:half],
        content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        content[:-12],
    ):
        path.write_bytes(damaged)
        assert not is_whole(path), len(damaged)


def short_run(root, steps=2, **training):
    return make_config("sd3", root, training={"steps": steps, "batch_size": 1, "save_every": 1, **training})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    root = tmp_path_factory.mktemp("begun")
    train(short_run(root), SilentHost())
    return root


DAMAGES = {
    "missing": None,
    "empty": b"",
    "{}": b"{}",
    "[]": b"[]",
    "not UTF-8": b"\xff\xfe\x00",
    "half": ...,
}
FILES = (
    "run.json", "metrics.jsonl", "checkpoints/run.json", "loras/run-000002.safetensors", "loras/run.safetensors",
    *(f"checkpoints/step-000002/{name}" for name in ("state.json", "adapter.safetensors", "optimizer.safetensors")),
)  # fmt: skip


def damage(path, content):
    if content is None:
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is ... else content)


@pytest.mark.parametrize("name", FILES)
def test_any_file_of_a_run_may_be_damaged_and_the_run_goes_on(begun, tmp_path, name):
    """Two kinds of damage for each file; `bench/fuzz.py` has them all."""
    kinds, place = list(DAMAGES.values()), FILES.index(name)
    for number, content in enumerate((kinds[place % len(kinds)], kinds[(place + 3) % len(kinds)])):
        root = tmp_path / str(number)
        shutil.copytree(begun, root)
        damage(root / "run" / name, content)
        assert train(short_run(root, steps=3), SilentHost()).state == "finished"
        assert RunFolder(root / "run").read()["step"] == 3


@pytest.mark.parametrize("content", [None, b"[]"], ids=["missing", "damaged"])
def test_without_run_json_no_other_configuration_goes_on(begun, tmp_path, content):
    root = tmp_path / "root"
    shutil.copytree(begun, root)
    damage(root / "run" / "run.json", content)
    with pytest.raises(RunError, match=r"training\.seed: 0 -> 7"):
        train(short_run(root, steps=3, seed=7), SilentHost())
    damage(root / "run" / "checkpoints" / "run.json", None)
    with pytest.raises(LoomError, match=r"run\.json cannot be read .*choose another name"):
        train(short_run(root, steps=3), SilentHost())


@pytest.mark.parametrize("table", ["objective", "training", "optimizer"])
def test_a_table_of_run_json_that_is_none_counts_as_damage(begun, tmp_path, table):
    """The copy of what the run began with is read in its place."""
    root = tmp_path / "root"
    shutil.copytree(begun, root)
    path = root / "run" / "run.json"
    record = json.loads(path.read_text())
    record["config"][table] = []
    path.write_text(json.dumps(record))
    assert train(short_run(root, steps=3), SilentHost()).state == "finished"


def test_a_run_json_that_does_not_say_what_is_fixed_is_not_gone_on_with(begun, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(begun, root)
    path = root / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["fixed"]
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="exists with another configuration"):
        train(short_run(root, steps=3), SilentHost())


@pytest.mark.parametrize(("name", "value"), [("strength", "1"), ("seed", None), ("guidance", 4), ("settings", [])])
def test_a_cell_of_a_damaged_sheet_is_none(tmp_path, name, value):
    good = {
        "id": "a", "image": "a.png", "checkpoint": "base", "strength": 1.0, "prompt": "p", "negative": "", "seed": 0,
        "guidance": "cfg 4",
    }  # fmt: skip
    assert sheet_from_dict({"cells": [good]}, tmp_path)[0].strength == 1.0
    with pytest.raises(TypeError, match=f"a cell's {name}"):
        sheet_from_dict({"cells": [{**good, name: value}]}, tmp_path)
