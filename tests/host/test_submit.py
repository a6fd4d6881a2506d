"""`lora-loom submit` and `runs` with a real ComfyUI: what its events, history and errors really look like."""

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app

from .conftest import new_server
from .graphs import data, file, hold, node, picture, prompt, train, trivial
from .server import ROOT
from .test_jobs import LONG

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoints):
    """With previews, which older versions only make if they are started so."""
    running = new_server(tmp_path_factory, checkpoints, "--preview-method", "latent2rgb").start()
    yield running
    running.stop()


def command(server, *arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--server", f"http://127.0.0.1:{server.port}"])


def beside(server, *arguments):
    """The same in a process of its own."""
    line = [sys.executable, "-m", "lora_loom.trainer", *map(str, arguments), "--server", f"http://127.0.0.1:{server.port}"]  # fmt: skip
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def saved(tmp_path, graph, name="flow.json"):
    (tmp_path / name).write_text(json.dumps(prompt(graph)))
    return tmp_path / name


def events(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_picture_with_progress_and_previews(server, bases, tmp_path):
    graph = picture(bases["sd1"], key="picture")
    graph["picture-sampler"]["inputs"]["steps"] = 12
    flow = saved(tmp_path, graph)
    done = command(server, "submit", flow, "--set", "picture-positive.text=123", "--set", "KSampler.seed=77", "-o", tmp_path / "out", "--previews", tmp_path / "seen", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = events(done)
    [name] = told[-1]["files"]
    assert (tmp_path / "out" / name.split("/")[-1]).read_bytes()[:4] == b"\x89PNG"
    assert [e["done"] for e in told if e["event"] == "progress" and e["what"] == "KSampler"][-1] == 12
    record = server.history(told[-1]["prompts"][0]["prompt_id"])
    assert record["prompt"][2]["picture-positive"]["inputs"]["text"] == "123"
    assert len(list((tmp_path / "seen").glob("preview-nodepicture-sampler-*.jpg"))) >= 2


def test_a_sweep_over_what_a_run_has_saved(server, bases, tmp_path):
    server.run(prompt(train(data(bases["sd1"]), "swept", steps=4, save_every=2)))
    graph = {**bases["sd1"], "patched": node("LoraLoaderModelOnly", model=bases["sd1"]["sources"]["model"], lora_name="", strength_model=1.0)}  # fmt: skip
    flow = saved(tmp_path, picture(graph, model=["patched", 0]))
    done = command(server, "submit", flow, "--sweep", "lora=swept/swept-*.safetensors", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [path.name for path in pictures] == ["swept-000002.png", "swept-000004.png"]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    done = command(server, "submit", flow, "--sweep", "lora=nothing-*", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "matches none of the" in done.stderr


def test_what_a_real_server_refuses_in_plain_words(server, bases, tmp_path):
    flow = saved(tmp_path, picture(bases["sd1"], key="picture"))
    for setting, message in (
        ("KSampler.steps=99999", "steps = 99999 is too large: use 1 to 10000"),
        ("KSampler.sampler_name=eulr", "sampler_name = 'eulr' is not an option that the server offers: did you mean"),
        ("KSampler.cfg=much", "cfg = 'much' is not of type FLOAT"),
        ('KSampler.model=["picture-latent", 0]', "model requires MODEL, but node picture-latent outputs LATENT: connect another output"),
    ):  # fmt: skip
        done = command(server, "submit", flow, "--set", setting, "-o", tmp_path)
        assert done.exit_code == 8, done.output
        assert f'node picture-sampler "KSampler": {message}' in done.stderr
    graph = picture(bases["sd1"], key="picture")
    del graph["picture-sampler"]["inputs"]["positive"]
    done = command(server, "submit", saved(tmp_path, graph), "-o", tmp_path)
    assert "positive is missing: connect it in the workflow" in done.stderr
    done = command(server, "submit", saved(tmp_path, {**graph, "odd": node("NoSuchNode")}), "-o", tmp_path)
    assert 'node odd "NoSuchNode": the server has no node NoSuchNode: install its node pack' in done.stderr
    partly = {**trivial(0), "bad": node("LoomTestHold", signal="", salt="x")}
    done = command(server, "submit", saved(tmp_path, partly), "-o", tmp_path)
    assert done.exit_code == 8
    assert "salt = 'x' is not of type INT" in done.stderr
    assert not server.http.get("/queue").json()["queue_pending"]


def test_a_node_that_fails_is_named(server, bases, tmp_path):
    flow = saved(tmp_path, {"run": node("LoomRun", name="no-such"), "wait": node("LoomWait", run=["run", 0])})
    done = command(server, "submit", flow, "-o", tmp_path)
    assert done.exit_code == 8
    assert 'node run "LoomRun" failed:' in done.stderr
    assert "there is no run 'no-such'" in done.stderr


def test_runs(server, bases, tmp_path):
    server.run(prompt(train(data(bases["sd3"]), "remote", **LONG)))
    server.wait_step("remote", 2)
    assert "remote" in command(server, "runs").stdout
    done = command(server, "runs", "pause", "remote")
    assert done.stdout.startswith("remote: paused at step"), done.output
    assert command(server, "runs", "save", "remote").exit_code == 0
    assert "no prompts to render" in command(server, "runs", "sample", "remote").stderr
    assert "running" in command(server, "runs", "resume", "remote").stdout
    follower = beside(server, "runs", "follow", "remote", "--json")
    first = json.loads(follower.stdout.readline())
    assert first["note"].startswith("loss")
    done = command(server, "runs", "stop", "remote")
    assert done.stdout.startswith("remote: stopped at step"), done.output
    rest, _ = follower.communicate(timeout=20)
    assert follower.returncode == 5
    assert json.loads(rest.splitlines()[-1])["message"].startswith("remote: stopped at step")
    assert "there is no run 'nobody'" in command(server, "runs", "stop", "nobody").stderr


def test_a_training_workflow_shows_its_loss(server, bases, tmp_path):
    flow = saved(tmp_path, train(data(bases["sd3"]), "submitted", steps=30, save_every=30))
    done = command(server, "submit", flow, "-o", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    notes = [event["note"] for event in events(done) if event["event"] == "progress" and event["what"] == "LoomTrain"]
    assert any(note.startswith("loss") for note in notes)
    assert server.run_state("submitted")["state"] == "finished"


def test_a_run_in_the_background_is_fetched(server, bases, tmp_path):
    """The files are those of the server, byte for byte."""
    flow = saved(tmp_path, train(data(bases["sd3"]), "fetched", mode="background", steps=6, save_every=3))
    done = command(server, "submit", flow, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert server.run_state("fetched")["state"] == "finished"
    there = server.base / "output" / "lora_loom" / "fetched" / "loras"
    here = tmp_path / "out" / "fetched"
    assert {path.name for path in here.iterdir()} == {path.name for path in there.glob("*.safetensors")}
    assert len(list(here.iterdir())) == 3
    assert all((there / path.name).read_bytes() == path.read_bytes() for path in here.iterdir())


def test_a_server_killed_midway_gets_the_prompt_again(server, tmp_path):
    """Last in this file: the server is another process afterwards."""
    flow = saved(tmp_path, picture(file("sd1"), key="picture", seed=5))
    graph = {**json.loads(flow.read_text()), **hold("killed once")}
    flow.write_text(json.dumps(graph))
    process = beside(server, "submit", flow, "-o", tmp_path / "out", "--reconnect-timeout", 600)
    deadline = time.monotonic() + 30
    while not server.http.get("/queue").json()["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    server.kill()
    server.release("killed once")
    server.start(port=server.port)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "the server was restarted and has lost it; queued again" in told
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
