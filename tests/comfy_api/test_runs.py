"""`lora-loom runs` against a small ComfyUI on the loopback."""

import json

import pytest
from typer.testing import CliRunner

from lora_loom.trainer.cli.main import app
from lora_loom.trainer.comfy_api import runs as remote_runs


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote_runs, "POLL_S", 0.02)


@pytest.fixture
def cat(fake):
    fake.runs["cat"] = {"name": "cat", "state": "running", "step": 2, "total": 5, "loss": 0.5, "eta": 125.0, "seconds": 0.1, "error": "", "samples": ["samples/step-000000-0.png"]}  # fmt: skip
    return fake


def command(fake, *arguments):
    return CliRunner().invoke(app, ["runs", *map(str, arguments), "--server", fake.url])


def test_the_list(cat):
    for arguments in ((), ("list",)):
        done = command(cat, *arguments)
        assert done.exit_code == 0, done.output
        assert done.stdout.split()[:6] == ["run", "state", "step", "of", "loss", "left"]
        assert done.stdout.splitlines()[1].split() == ["cat", "running", "2", "5", "0.5000", "2", "min"]
    assert json.loads(command(cat, "list", "--json").stdout)["runs"][0]["name"] == "cat"
    cat.runs.clear()
    assert "no runs on" in command(cat).stdout


def test_following_to_the_end_fetches_samples(cat, tmp_path):
    done = command(cat, "follow", "cat", "--samples", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["done"] for event in events if event["event"] == "progress"] == [3, 4, 5]
    assert [event["note"] for event in events if event["event"] == "progress"][-1] == "loss 0.2000  0.10 s/step"
    assert events[-1]["state"] == "finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-00000{n}-0.png" for n in (0, 3, 4, 5)]


def test_a_run_that_ends_badly_is_an_error(cat):
    cat.runs["cat"] |= {"state": "failed", "error": "loss nan at step 2"}
    done = command(cat, "follow", "cat")
    assert done.exit_code == 5
    assert "error: cat: failed at step 2 of 5: loss nan at step 2" in done.stderr


@pytest.mark.parametrize(("action", "state"), [("pause", "paused"), ("stop", "stopped"), ("save", "running"), ("sample", "running"), ("resume", "running")])  # fmt: skip
def test_actions(cat, action, state):
    cat.runs["cat"]["moves"] = False
    done = command(cat, action, "cat")
    assert done.exit_code == 0, done.output
    assert cat.actions == [action]
    assert done.stdout.startswith(f"cat: {state} at step ")


def test_what_the_server_refuses_is_told_in_its_words(cat):
    cat.runs["cat"]["state"] = "finished"
    assert "error: run cat is not active" in command(cat, "pause", "cat").stderr
    done = command(cat, "stop", "dog")
    assert done.exit_code == 5
    assert "there is no run 'dog'" in done.stderr
    assert command(cat, "stop", "../x").exit_code == 2


def test_a_server_without_this_pack(cat, monkeypatch):
    monkeypatch.setattr(remote_runs, "ROUTE", "/elsewhere")
    done = command(cat)
    assert done.exit_code == 7
    assert "has no LoRA Loom (404): install this pack" in done.stderr


def test_options_before_the_command_are_refused_not_ignored(cat):
    done = CliRunner().invoke(app, ["runs", "--server", cat.url, "list"])
    assert done.exit_code == 2
    assert "--server belongs behind the command: lora-loom runs list --server" in done.stderr
