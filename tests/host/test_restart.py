"""kill -9 the server while it trains; nothing is lost, and the run goes on exactly."""

import signal

import pytest

from .conftest import new_server
from .graphs import data, file, prompt, train

pytestmark = pytest.mark.comfyui


@pytest.fixture
def mortal(tmp_path_factory, checkpoints):
    server = new_server(tmp_path_factory, checkpoints).start()
    yield server
    server.stop()


def adapter(server, name, step):
    return (server.base / "output" / "lora_loom" / name / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors").read_bytes()  # fmt: skip


@pytest.mark.parametrize("how", ["route", "graph"])
def test_kill_and_resume(mortal, how):
    options = {"steps": 60, "save_every": 5, "ema": 0.9, "mode": "background"}
    graph = prompt(train(data(file("sd3")), "killed", **options))
    mortal.run(graph)
    mortal.wait_step("killed", 12)
    mortal.kill()
    mortal.start()
    found = mortal.run_state("killed")
    assert found["state"] == "interrupted"
    assert found["step"] >= 10
    if how == "route":
        assert mortal.act("killed", "resume").status_code == 200
    else:
        mortal.run(graph)
    mortal.wait_state("killed", "finished")
    mortal.run(prompt(train(data(file("sd3")), "unharmed", **{**options, "mode": "wait"})))
    assert adapter(mortal, "killed", 60) == adapter(mortal, "unharmed", 60)
    leftovers = [path for path in (mortal.base / "output").rglob("*") if path.name.endswith(".tmp")]
    assert not leftovers


def test_the_cache_is_the_same_after_a_restart(mortal):
    cached = prompt(data(file("sd3")))
    assert ", 9 encoded" in mortal.run(cached)["outputs"]["cache"]["text"][0]
    mortal.stop()
    mortal.start()
    assert "9 items reused, 0 encoded" in mortal.run(cached)["outputs"]["cache"]["text"][0]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_server_that_is_told_to_end_saves_its_runs(mortal, how):
    name = f"told-{how.name}"
    graph = prompt(train(data(file("sd3")), name, steps=100_000, save_every=0, mode="background"))
    mortal.run(graph)
    mortal.wait_step(name, 5)
    mortal.process.send_signal(how)
    mortal.process.wait(60)
    mortal.start()
    found = mortal.run_state(name)
    assert found["state"] == "stopped"
    assert found["checkpoints"] == [found["step"]]
    assert found["step"] >= 5
    assert f"loras/{name}.safetensors" in found["loras"]
