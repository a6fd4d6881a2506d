"""A run whose rate falls at its end (wsd): what lies before the fall is kept, and a run that gets more steps goes on from there."""

from itertools import pairwise

import pytest
from safetensors.torch import load_file

from lora_loom.trainer.config.run import ScheduleConfig
from lora_loom.trainer.runs.checkpoint import list_checkpoints
from lora_loom.trainer.runs.headless import run_folder, train
from lora_loom.trainer.training.schedule import fall_begins, lr_factor
from tests.conftest import SilentHost, make_config


def run_of(root, steps, name="run", **schedule):
    config = make_config(
        "sd3", root, name=name, schedule={"kind": "wsd", "decay": 0.34, **schedule},
        training={"steps": steps, "save_every": 3, "keep_checkpoints": 1},
    )  # fmt: skip
    host = SilentHost()
    train(config, host)
    return run_folder(config), host


def kept(folder):
    return [checkpoint.step for checkpoint in list_checkpoints(folder.checkpoints)]


@pytest.mark.parametrize("schedule", [{}, {"warmup": 7}, {"warmup": 0.1, "decay": 12}, {"decay": 500}, {"warmup": 80}])
def test_the_rate_falls_after_the_step_that_is_named(schedule):
    config = ScheduleConfig(kind="wsd", **schedule)
    begins = fall_begins(50, config)
    factors = [lr_factor(step, 50, config) for step in range(50)]
    assert all(later >= factor for factor, later in pairwise(factors[: begins + 1]))
    assert all(later < factor for factor, later in pairwise(factors[begins:]))


def test_only_wsd_has_a_part_that_a_longer_run_shares():
    assert {fall_begins(50, ScheduleConfig(kind=kind)) for kind in ("constant", "cosine", "linear", "rex")} == {None}


def test_what_lies_before_the_fall_is_kept(tmp_path):
    folder, _ = run_of(tmp_path, 6)
    assert kept(folder) == [4, 6], "one is kept, and that before the fall"


def test_a_run_that_gets_more_steps_is_the_longer_run(tmp_path):
    folder, _ = run_of(tmp_path, 6)
    longer, host = run_of(tmp_path, 10)
    straight, _ = run_of(tmp_path, 10, name="straight")
    assert "goes on from step 4" in "".join(host.text)
    first, second = load_file(longer.lora_file(None)), load_file(straight.lora_file(None))
    assert all(first[name].equal(value) for name, value in second.items())
    rates = [[line["learning_rate"] for line in one.read_metrics() if "loss" in line] for one in (longer, straight)]
    assert rates[0] == rates[1]
    assert kept(longer) == kept(straight) == [7, 10]
    assert (folder.checkpoints / "step-000006.fallen").is_dir(), "nothing of the shorter run is deleted"
    assert (folder.results / "run-000006.safetensors.fallen").is_file() or (
        folder.results / "run-000006.safetensors"
    ).is_file()


def test_a_run_that_is_continued_as_it_is_stays_where_it_is(tmp_path):
    config = make_config("sd3", tmp_path, schedule={"kind": "wsd"}, training={"steps": 6, "save_every": 3})
    assert train(config, SilentHost(stop_at=5)).state == "stopped"
    host = SilentHost()
    train(config, host)
    assert "continuing from step 5" in host.text
    assert not any("set aside" in line for line in host.text)


def test_without_a_checkpoint_before_the_fall_it_goes_on_from_the_last_one(tmp_path):
    config = make_config(
        "sd3", tmp_path, schedule={"kind": "wsd", "decay": 0.9}, training={"steps": 6, "save_every": 6}
    )
    train(config, SilentHost())
    [before, _] = list_checkpoints(run_folder(config).checkpoints)
    before.folder.rename(before.folder.with_name("moved"))
    longer = make_config(
        "sd3", tmp_path, schedule={"kind": "wsd", "decay": 0.9}, training={"steps": 8, "save_every": 8}
    )
    host = SilentHost()
    train(longer, host)
    assert "continuing from step 6" in host.text
