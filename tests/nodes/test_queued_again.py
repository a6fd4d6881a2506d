"""A graph that is queued again does what it says: deleted runs begin again, `new` goes on with its own run, names are not burnt."""

import shutil
from types import SimpleNamespace

import pytest

from lora_loom.trainer.errors import ConfigError, DivergedError, RunError
from lora_loom.trainer.runs.headless import run_folder, train
from tests.conftest import SilentHost, make_config
from tests.nodes.test_one_way import graph_plan

IDLE = SimpleNamespace(active=lambda name: None)


@pytest.fixture
def place(host):
    """(actions, records, paths) of the graph, and a function that puts a run on disk."""
    actions, records, paths = host("runs.actions"), host("runs.records"), host("paths")

    def put(name, plan, *, checkpoint=1, **record):
        folder = paths.run_folder(name)
        folder.start(plan.config(), plan.fixed(), {}, ["a"])
        folder.update(step=checkpoint, **record)
        if checkpoint:
            (folder.checkpoints / f"step-{checkpoint:06d}").mkdir(parents=True)
        return folder

    return SimpleNamespace(actions=actions, records=records, put=put)


def test_a_deleted_run_is_started_again_and_its_end_changes_nothing(host, place):
    actions, plan = place.actions, graph_plan(host)
    before = actions.needs_start("graph-run")
    folder = place.put("graph-run", plan, state="finished")
    actions.KNOWN.seen("graph-run")  # as `start` does
    assert actions.needs_start("graph-run") == before, "an unchanged finished run is returned from ComfyUI's cache"
    shutil.rmtree(folder.path)
    deleted = actions.needs_start("graph-run")
    assert deleted != before
    place.put("graph-run", plan, state="finished")
    assert actions.needs_start("graph-run") == deleted


def test_new_asks_for_the_state_of_the_run_that_it_made(host, place):
    actions, other = place.actions, graph_plan(host, batch_size=7)
    place.put("graph-run", other, state="finished")
    before = actions.needs_start("graph-run", "new")
    second = place.put("graph-run-2", graph_plan(host), state="finished")
    assert actions.needs_start("graph-run", "new") == before
    second.update(state="failed")
    assert actions.needs_start("graph-run", "new") != before
    assert actions.needs_start("graph-run", "resume") == before, "resume means the run of that very name"


@pytest.mark.parametrize("state", ["failed", "stopped", "interrupted"])
def test_new_goes_on_with_its_own_unfinished_run(host, place, state):
    place.put("graph-run", graph_plan(host, batch_size=7), state="finished")
    place.put("graph-run-2", graph_plan(host), state=state)
    choice = place.records.choose(graph_plan(host), "new", IDLE)
    assert (choice.folder.name, choice.is_finished, choice.replaces) == ("graph-run-2", False, False)


def test_a_run_that_kept_nothing_gives_its_name_back_in_the_graph(host, place):
    folder = place.put("graph-run", graph_plan(host, batch_size=7), checkpoint=0, state="failed")
    choice = place.records.choose(graph_plan(host), "resume", IDLE)
    assert (choice.folder.name, choice.replaces) == ("graph-run", True)
    (folder.path / "loras").mkdir()
    (folder.path / "loras" / "graph-run-000001.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="exists with another configuration"):
        place.records.choose(graph_plan(host), "resume", IDLE)


def test_a_run_that_kept_nothing_gives_its_name_back_on_the_command_line(tmp_path, monkeypatch):
    broken = make_config("sd3", tmp_path / "a", training={"steps": 2, "save_every": 1})

    def diverges(*_, **__):
        raise DivergedError("loss nan in step 1")

    with monkeypatch.context() as patch:
        patch.setattr("lora_loom.trainer.runs.execute.fit", diverges)
        with pytest.raises(DivergedError):
            train(broken, SilentHost())
    folder = run_folder(broken)
    folder.append_metrics(step=0, held_out=9.0)
    other = make_config("sd3", tmp_path / "a", training={"steps": 2, "save_every": 1, "seed": 5})
    host = SilentHost()
    assert train(other, host).state == "finished"
    assert any("kept nothing of its earlier attempt" in text for text in host.text)
    assert not any("held_out" in line for line in folder.read_metrics()), "nothing of the earlier attempt is left"


@pytest.mark.parametrize("name", ["a/b", "..", "con", "x" * 101, "空" * 80, "com¹"])
def test_a_name_is_refused_when_the_graph_is_queued(host, name):
    from lora_loom.nodes.train import LoomTrain

    assert LoomTrain.VALIDATE_INPUTS(name=name).startswith(f"name = {name!r}")
    assert LoomTrain.VALIDATE_INPUTS(name="my-lora") is True
    assert LoomTrain.VALIDATE_INPUTS() is True, "a link is not known yet"


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\udcffb\ud800"])
def test_a_path_that_is_none_is_one_plain_line(host, text):
    with pytest.raises(ConfigError, match="is not a path on this machine"):
        host("paths").resolve_folder(text, "folder")
