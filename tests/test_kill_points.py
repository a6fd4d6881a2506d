"""What a kill leaves undone, the next start does, bit for bit: at every point of every stage, none skipped.

The points are those before each operation on a file, and the middle of each write. Every distinct state that a kill can leave
is continued in a child of this process, which has the models in memory. `bench/kills.py` has real SIGKILLs at random moments.
"""

import os
from dataclasses import replace

import pytest

from lora_loom.trainer.config.run import ValidationConfig
from lora_loom.trainer.runs.execute import execute
from lora_loom.trainer.runs.headless import run_folder
from tests.conftest import SilentHost
from tests.kill_stages import STAGES, begin_session, comparable, queue_session, warm, whole_run
from tests.kills import check_every_point, in_child
from tests.nodes.conftest import host

__all__ = ["host"]  # a fixture

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
KINDS = {"write", "half a write", "fsync", "replace"}


class Save(SilentHost):
    """Watches from the end of step 2 to the end of step 3: one save with all that belongs to it."""

    def __init__(self, points):
        super().__init__()
        self.points = points

    def step(self, result, total):
        super().step(result, total)
        self.points.recording = result.step == 2


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    warm(tmp_path_factory.mktemp("warm"))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def ready_session(place, *, plain=False):
    """A session with its base loaded, begun as `train` begins it. A plain one takes a step, measures nothing and saves."""
    config = whole_run(place)
    if plain:
        training = replace(config.training, steps=1, ema_decay=0.0)
        data = replace(config.data, validation_split=0.0)
        network = replace(config.network, target_modules="regex:transformer_blocks.0.attn.to_q")
        config = replace(config, training=training, data=data, network=network, validation=ValidationConfig())
    assert in_child(STAGES["cache"][1], place) == 0
    return begin_session(config)


def test_a_save_of_a_run(place, tmp_path):
    session, start = ready_session(place)
    start()

    def train(host):
        session.folder.lock()
        execute(session, host)

    seen, states = check_every_point(
        place, tmp_path / "copies", lambda: train(SilentHost()), comparable, lambda points: lambda: train(Save(points))
    )
    assert {*KINDS, "rename", "unlink", "rmdir", "mkdir"} <= seen.keys()
    assert (sum(seen.values()), states) >= (79, 20)
    assert run_folder(whole_run(place)).read()["state"] == "finished"


def test_a_run_of_the_graph(place, tmp_path, host):
    """What LoomTrain writes from the moment its session is made: run.json, the graph, states, and all that the run keeps."""
    session, start = ready_session(place, plain=True)

    def queued():
        queue_session(session, start, host)

    seen, states = check_every_point(place, tmp_path / "copies", queued, comparable)
    assert seen.keys() >= KINDS
    assert (sum(seen.values()), states) >= (100, 20)
    assert host("runs.records").stored_graph(session.folder)["1"]["inputs"]["name"] == "run"


def test_a_shard_of_the_cache(place, tmp_path):
    seen, states = check_every_point(place, tmp_path / "copies", lambda: STAGES["cache"][1](place), comparable)
    assert seen.keys() >= KINDS
    assert (sum(seen.values()), states) >= (10, 5)


def test_cells_and_strips_of_a_sweep(place, tmp_path):
    seen, states = check_every_stage("sweep", place, tmp_path)
    assert seen["replace"] == 7, "two cells, the sheet, a strip, a page, two tables"
    assert (sum(seen.values()), states) >= (40, 14)


def test_a_report_of_scores(place, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_loom.trainer.score.run.plot", lambda score, title: b"a plot")
    seen, states = check_every_stage("score", place, tmp_path)
    assert seen["replace"] >= 6, "text, CSV, JSON, plot, the sheet, the strip"
    assert (sum(seen.values()), states) >= (30, 10)


def check_every_stage(name, place, tmp_path):
    before, act = STAGES[name]
    for stage in before:
        assert in_child(stage, place) == 0
    return check_every_point(place, tmp_path / "copies", lambda: act(place), comparable)
