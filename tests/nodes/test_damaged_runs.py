"""Damaged runs in ComfyUI's list of runs."""

import pytest

from lora_loom.trainer.errors import RunError
from tests.nodes.test_queued_again import IDLE
from tests.runs.test_damaged_files import NO_RECORDS


def test_damaged_runs_are_listed_as_damaged_beside_the_others(host):
    records, paths = host("runs.records"), host("paths")
    paths.run_folder("good").start({"training": {"steps": 4}}, {}, {})
    for number, content in enumerate(NO_RECORDS):
        paths.run_folder(f"bad{number}").path.mkdir()
        (paths.run_folder(f"bad{number}").path / "run.json").write_bytes(content)
    runs = {run["name"]: run for run in records.list_runs(IDLE)}
    assert runs.pop("good")["total"] == 4
    assert len(runs) == len(NO_RECORDS)
    assert {run["state"] for run in runs.values()} == {"damaged"}
    assert all("cannot be read" in run["error"] for run in runs.values())


@pytest.mark.parametrize(
    "content", ['""', "[]", "{}", '{"prompt": {}, "node": "1"}', '{"prompt": {"1": 5}, "node": "1"}']
)
def test_a_damaged_graph_is_one_plain_line(host, content):
    records, folder = host("runs.records"), host("paths").run_folder("run")
    folder.start({}, {}, {})
    (folder.path / "graph.json").write_text(content)
    with pytest.raises(RunError, match=r"graph\.json is damaged .*queue the graph"):
        records.stored_graph(folder)
