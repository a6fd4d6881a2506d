"""`lora-loom submit` against a small ComfyUI on the loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.comfy_api import runs as remote_runs
from lora_loom.trainer.comfy_api import submit as submit_module
from lora_loom.trainer.comfy_api.client import Answer, ComfyServer
from lora_loom.trainer.comfy_api.submit import free_path, submit
from lora_loom.trainer.comfy_api.workflow import Planned
from lora_loom.trainer.errors import ServerError, StoppedError
from lora_loom.trainer.storage.names import safe_name
from tests.comfy_api.fake import GRAPH, JPEG


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(submit_module, "LISTEN_S", 0.05)
    monkeypatch.setattr(submit_module, "POLL_S", 0.5)


class Watcher:
    def __init__(self, stop_when=lambda watcher: False):
        self.lines, self.bars, self.ended, self.stop_when = [], [], [], stop_when

    def log(self, text):
        self.lines.append(text)

    def progress(self, label, what, done, total, note):
        self.bars.append((label, what, done, total))

    def finished(self, result, done, total):
        self.ended.append((result.label, done, total))

    def should_stop(self):
        return self.stop_when(self)


def command(fake, *arguments):
    return CliRunner().invoke(app, ["submit", *map(str, arguments), "--server", fake.url])


def prompts(*labels):
    return [Planned(label=label, graph={**GRAPH, "2": {**GRAPH["2"], "inputs": {"text": label}}}, values={"2.text": label}) for label in labels]  # fmt: skip


def test_a_prompt_from_queue_to_file(fake, workflow, tmp_path):
    out = tmp_path / "out"
    done = command(fake, workflow, "--set", "KSampler.steps=3", "--set", "Positive.text=12", "-o", out, "--previews", tmp_path / "seen", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    [body] = fake.received
    assert body["prompt"]["3"]["inputs"]["steps"] == 3
    assert body["prompt"]["2"]["inputs"]["text"] == "12"
    assert json.loads((out / "x_00001_.png").read_text()) == {"filename": "x_00001_.png", "subfolder": "", "type": "output"}  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress" and event["what"] == "KSampler"] == [0, 1, 2, 3]  # fmt: skip
    assert events[-1]["files"] == [str(out / "x_00001_.png")]
    assert events[-1]["prompts"][0]["texts"] == {"4": "saved it"}
    seen = sorted((tmp_path / "seen").iterdir())
    assert len(seen) == 3
    assert seen[0].suffix == ".jpg"
    assert seen[0].read_bytes() == JPEG


def test_a_sweep_is_one_prompt_per_value_with_named_files_and_continues(fake, workflow, tmp_path):
    out = tmp_path / "out"
    arguments = (workflow, "--sweep", "lora=cat/*.safetensors", "--sweep", "KSampler.seed=1,2", "-o", out)
    done = command(fake, *arguments)
    assert done.exit_code == 0, done.output
    names = [graph["1"]["inputs"]["lora_name"] for graph in fake.ran]
    assert names == ["cat/cat-000100.safetensors"] * 2 + ["cat/cat-000900.safetensors"] * 2 + ["cat/cat-001000.safetensors"] * 2  # fmt: skip
    assert [graph["3"]["inputs"]["seed"] for graph in fake.ran] == [1, 2] * 3
    assert sorted(path.name for path in out.glob("*.png")) == [f"cat-{n}_{seed}.png" for n in ("000100", "000900", "001000") for seed in (1, 2)]  # fmt: skip
    (out / "cat-000900_2.png").unlink()
    done = command(fake, *arguments)
    assert done.exit_code == 0, done.output
    assert len(fake.ran) == 7
    assert (out / "cat-000900_2.png").is_file()
    assert done.output.count(", reused") == 5
    assert command(fake, *arguments, "--rerun").exit_code == 0
    assert len(fake.ran) == 13
    assert len(list(out.glob("*.png"))) == 6, "our own files are replaced"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("1.lora_name=dgo.safetensors", "node 1 \"Load LoRA\": lora_name = 'dgo.safetensors' is not an option that the server offers: did you mean 'dog.safetensors'?"),
        ("3.steps=99", 'node 3 "KSampler": steps = 99 is too large: use 1 to 50'),
    ],
)  # fmt: skip
def test_a_refused_workflow_says_why_node_by_node(fake, workflow, tmp_path, setting, message):
    done = command(fake, workflow, "--set", setting, "-o", tmp_path / "out")
    assert done.exit_code == 8
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_node_that_the_server_lacks(fake, workflow, tmp_path):
    graph = {**GRAPH, "5": {"class_type": "Fancy", "inputs": {}}}
    workflow.write_text(json.dumps(graph))
    done = command(fake, workflow, "-o", tmp_path / "out")
    assert done.exit_code == 8
    assert 'node 5 "Fancy": the server has no node Fancy: install its node pack' in done.stderr


def test_a_failing_node_is_named_and_the_rest_of_a_sweep_goes_on(fake, workflow, tmp_path):
    workflow.write_text(json.dumps({**GRAPH, "5": {"class_type": "Break", "inputs": {"how": "now"}}}))
    done = command(fake, workflow, "-o", tmp_path / "out", "--sweep", "3.seed=1,2")
    assert done.exit_code == 8
    assert len(fake.ran) == 2
    assert 'error: 2 of 2 prompts failed:\n1: node 5 "Break" failed: RuntimeError: no kernel image\n2: node 5' in done.stderr  # fmt: skip


def test_without_a_server_there_is_one_plain_line(fake, workflow):
    fake.kill()
    done = command(fake, workflow)
    assert done.exit_code == 7
    assert done.stderr == f"error: cannot reach ComfyUI at {fake.url} (Connection refused): start it, or set its address with --server\n"  # fmt: skip
    assert CliRunner().invoke(app, ["submit", str(workflow), "--server", "http://"]).exit_code == 2


def test_another_web_server_is_not_taken_for_comfyui(fake, workflow, monkeypatch):
    monkeypatch.setattr(ComfyServer, "get", lambda self, path: Answer(200, "<html>"))
    done = command(fake, workflow)
    assert done.exit_code == 7
    assert "answers, but it is not a ComfyUI server" in done.stderr


def test_a_server_that_dies_midway_is_waited_for_and_gets_the_prompt_again(fake, tmp_path):
    fake.gate.clear()
    watcher = Watcher()

    def accident():
        while not fake.queue:
            time.sleep(0.01)
        time.sleep(0.2)
        fake.kill()
        fake.gate.set()
        time.sleep(0.8)
        fake.start()

    thread = threading.Thread(target=accident)
    thread.start()
    with ComfyServer(fake.url, patience_s=20, told=watcher.log) as server:
        server.find()
        results = submit(server, prompts("one", "two", "three"), tmp_path, watcher)
    thread.join()
    assert [result.error for result in results] == ["", "", ""]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["one.png", "three.png", "two.png"]
    assert any("does not answer" in line for line in watcher.lines)
    assert any("answers again" in line for line in watcher.lines)
    assert any(line.startswith("one: the server was restarted and has lost it; queued again") for line in watcher.lines)


def test_a_server_that_stays_away_ends_in_a_plain_error_and_the_next_call_goes_on(fake, tmp_path):
    watcher = Watcher()
    with ComfyServer(fake.url, patience_s=0.6) as server:
        server.find()
        submit(server, prompts("one"), tmp_path, watcher)
        fake.gate.clear()
        threading.Timer(0.3, fake.kill).start()
        with pytest.raises(ServerError, match="was lost .* was not restored within 0.6 s.*Of 2 prompts 1 are done; the same command continues"):  # fmt: skip
            submit(server, prompts("one", "two"), tmp_path, watcher)
        fake.gate.set()
        fake.start()
        results = submit(server, prompts("one", "two"), tmp_path, watcher)
    assert [result.reused for result in results] == [True, False]


def test_a_prompt_that_the_server_loses_twice_is_given_up(fake, tmp_path):
    fake.gate.clear()

    def forget():
        while True:
            fake.queue, fake.history = [], {}
            if len(fake.received) == 2 and done.wait(0.3):
                return
            time.sleep(0.05)

    done = threading.Event()
    threading.Timer(0.2, forget).start()
    with ComfyServer(fake.url) as server:
        server.find()
        [result] = submit(server, prompts("one"), tmp_path, Watcher())
    done.set()
    fake.gate.set()
    assert len(fake.received) == 2
    assert "restarted twice" in result.error


def test_without_a_websocket_the_history_is_enough(fake, tmp_path):
    fake.websocket_works = False
    watcher = Watcher()
    with ComfyServer(fake.url) as server:
        server.find()
        [result] = submit(server, prompts("one"), tmp_path, watcher)
    assert result.error == ""
    assert watcher.bars == []


def test_a_stop_takes_our_prompts_off_the_server_and_no_others(fake, tmp_path):
    fake.gate.clear()
    with ComfyServer(fake.url) as server:
        server.find()
        theirs = server.post("/prompt", {"prompt": GRAPH}).data["prompt_id"]
        fake.gate.set()
        while fake.queue:
            time.sleep(0.01)
        fake.gate.clear()
        started = Watcher(stop_when=lambda watcher: any(what == "KSampler" for _, what, _, _ in watcher.bars))
        with pytest.raises(StoppedError, match="Of 3 prompts 0 are done"):
            submit(server, prompts("one", "two", "three"), tmp_path, started)
    assert len(fake.interrupted) == 1
    assert theirs not in fake.interrupted
    assert len(fake.received) == 3, "two are queued ahead, the third never was"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c(fake, workflow, tmp_path):
    fake.gate.clear()
    arguments = [sys.executable, "-m", "lora_loom.trainer", "submit", str(workflow), "--server", fake.url, "-o", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while not fake.queue:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130, told
    assert "removing this command's prompts from the server" in told
    assert len(fake.interrupted) == 1


def test_many_prompts_are_asked_for(fake, workflow, tmp_path):
    done = command(fake, workflow, "--sweep", "strength_model=0-1 [201]", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "201 prompts are more than 200: add --allow-many" in done.stderr
    assert not fake.received


@pytest.mark.parametrize("content", ["", "{", "[]", '{"prompts": []}', '{"prompts": {"a": {"files": []}, "b": 3}}'])
def test_a_damaged_record_counts_for_nothing(fake, workflow, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "submit.json").write_text(content)
    done = command(fake, workflow, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(json.loads((tmp_path / "out" / "submit.json").read_text())["prompts"]) == 1


@pytest.mark.parametrize(("given", "safe"), [("../../etc/passwd", "passwd"), ("a\\b.png", "b.png"), ("..", "file"), ("x:y?.png", "x_y_.png"), ("", "file")])  # fmt: skip
def test_names_from_the_server_cannot_leave_the_folder(given, safe):
    assert safe_name(given) == safe


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "a.png").write_text("mine")
    assert free_path(tmp_path / "a.png", lambda path: False) == tmp_path / "a-2.png"
    assert free_path(tmp_path / "a.png", lambda path: True) == tmp_path / "a.png"


def training(tmp_path, name="cat"):
    path = tmp_path / "train.api.json"
    path.write_text(json.dumps({"1": {"class_type": "LoomTrain", "inputs": {"name": name}}}))
    return path


def test_a_background_run_is_followed_and_its_loras_are_fetched(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_runs, "POLL_S", 0.02)
    flow = training(tmp_path)
    done = command(fake, flow, "-o", tmp_path / "out", "--no-wait", "--json")
    assert done.exit_code == 0, done.output
    assert fake.runs["cat"]["step"] == 0, "left alone"
    done = command(fake, flow, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress" and event.get("note")][-1] == 3
    names = ["cat-000002.safetensors", "cat.safetensors"]
    assert events[-1]["files"] == [str(tmp_path / "out" / "cat" / name) for name in names]
    assert [(tmp_path / "out" / "cat" / name).read_text() for name in names] == [f"loras/{name}" for name in names]


def test_a_background_run_that_fails_is_an_error(fake, tmp_path):
    fake.runs["cat"] = {"name": "cat", "state": "failed", "step": 2, "total": 3, "error": "loss nan at step 2", "samples": [], "loras": []}  # fmt: skip
    done = command(fake, training(tmp_path), "-o", tmp_path / "out")
    assert done.exit_code == 5
    assert "cat: failed at step 2 of 3: loss nan at step 2" in done.stderr


def test_a_stopped_watcher_leaves_the_run_alone(fake, tmp_path):
    fake.runs["cat"] = {
        "name": "cat",
        "state": "paused",
        "step": 1,
        "total": 3,
        "error": "",
        "samples": [],
        "loras": [],
    }
    with ComfyServer(fake.url) as server, pytest.raises(StoppedError, match="no longer following cat, which continues"):
        remote_runs.RemoteRuns(server).collect(["cat"], Watcher(lambda watcher: True), tmp_path)
    assert fake.actions == []
