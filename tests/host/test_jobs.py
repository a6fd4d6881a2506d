"""Background runs beside the queue: yielding, waiting, cancelling, pausing, killing, continuing."""

import time

import pytest

from .graphs import data, hold, node, picture, prompt, train
from .server import error_of

pytestmark = pytest.mark.comfyui
LONG = {"steps": 100_000, "save_every": 1000, "mode": "background"}


@pytest.fixture
def base(bases):
    return data(bases["sd3"])


def checkpoint(server, name, step):
    return (server.base / "output" / "lora_loom" / name / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors").read_bytes()  # fmt: skip


def stop(server, name):
    server.act(name, "stop")
    return server.wait_state(name, "stopped", "finished", "failed")


def test_a_held_run_stands_still_and_cancel_of_the_other_prompt_does_not_touch_it(server, base):
    server.run(prompt(train(base, "held", **LONG)))
    server.wait_step("held", 3)
    other = server.queue(hold("never sent"))
    held = server.wait_state("held", "yielding")
    server.http.get("/object_info")  # takes the server longer than a step
    assert server.run_state("held")["step"] == held["step"]
    server.http.post("/interrupt", json={})
    record = server.finish(other)
    assert error_of(record) == "interrupted"  # the other prompt got its Cancel
    server.wait_step("held", held["step"] + 3)  # and training went on
    run = stop(server, "held")
    assert (run["state"], run["checkpoints"]) == ("stopped", [run["step"]])


def test_pause_save_resume_and_stop_by_route(server, base):
    server.run(prompt(train(base, "buttons", **LONG)))
    server.wait_step("buttons", 2)
    server.act("buttons", "pause")
    paused = server.wait_state("buttons", "paused")
    assert server.act("buttons", "save").status_code == 200
    deadline = time.monotonic() + 30
    while not server.run_state("buttons")["checkpoints"] and time.monotonic() < deadline:
        time.sleep(0.02)
    now = server.run_state("buttons")
    assert (now["state"], now["step"], now["checkpoints"]) == ("paused", paused["step"], [paused["step"]])
    server.act("buttons", "resume")
    server.wait_step("buttons", paused["step"] + 2)
    run = stop(server, "buttons")
    assert run["step"] in run["checkpoints"]
    assert f"loras/buttons-{run['step']:06d}.safetensors" in run["loras"]


def test_stop_ends_a_paused_run_where_it_is(server, base):
    server.run(prompt(train(base, "paused-stop", **LONG)))
    server.wait_step("paused-stop", 2)
    server.act("paused-stop", "pause")
    paused = server.wait_state("paused-stop", "paused")
    assert stop(server, "paused-stop")["step"] == paused["step"]


def test_cancel_in_wait_mode_saves_and_stops(server, base):
    waiting = server.queue(prompt(train(base, "cancelled", **{**LONG, "mode": "wait"})))
    server.wait_step("cancelled", 3)
    server.http.post("/interrupt", json={})
    record = server.finish(waiting)
    assert error_of(record) == "interrupted"
    run = server.wait_state("cancelled", "stopped")
    assert run["step"] >= 3
    assert run["step"] in run["checkpoints"]


def test_the_same_graph_queued_twice_is_one_run(server, base):
    graph = prompt(train(base, "twice", **LONG))
    server.run(graph)
    server.wait_step("twice", 2)
    server.run(graph)
    runs = [run["name"] for run in server.http.get("/lora_loom/runs").json()["runs"]]
    assert runs.count("twice") == 1
    assert "twice-2" not in runs
    stop(server, "twice")


def test_attach_waits_for_the_running_one(server, base):
    server.run(prompt(train(base, "attach", **{**LONG, "steps": 60})))
    server.run(prompt(train(base, "attach", **{**LONG, "steps": 60, "mode": "wait"})))
    assert server.run_state("attach")["state"] == "finished"


def test_a_stopped_run_goes_on_exactly(server, base):
    options = {"steps": 30, "save_every": 10, "ema": 0.9, "batch_size": 2}
    server.run(prompt(train(base, "whole", **options)))
    graph = prompt(train(base, "parts", mode="background", **options))
    server.run(graph)
    server.wait_step("parts", 5)
    stopped = stop(server, "parts")
    assert stopped["step"] >= 5
    server.run(graph)  # unchanged: only the stored state tells that there is something to do
    server.wait_state("parts", "finished")
    assert checkpoint(server, "parts", 30) == checkpoint(server, "whole", 30)


def test_a_run_queued_behind_another_can_be_waited_for(server, base):
    server.run(prompt(train(base, "a", mode="background", steps=40)))
    graph = train(base, "b", mode="background", steps=10)
    graph["wait"] = node("LoomWait", run=["train", 0])
    server.run(prompt(graph))
    assert server.run_state("b")["state"] == "finished"
    assert server.run_state("a")["state"] == "finished"


def test_a_queued_run_can_be_withdrawn(server, base):
    server.run(prompt(train(base, "front", **LONG)))
    server.run(prompt(train(base, "behind", **LONG)))
    assert server.run_state("behind")["state"] == "queued"
    assert stop(server, "behind")["step"] == 0
    stop(server, "front")


def test_a_sampler_and_a_wait_in_one_prompt(server, base):
    graph = train(base, "sample-wait", mode="background", steps=20)
    graph["wait"] = node("LoomWait", run=["train", 0])
    graph["patched"] = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=["wait", 1], strength_model=1.0)  # fmt: skip
    graph = picture(graph, key="before")
    graph = picture(graph, model=["patched", 0], key="after")
    record = server.run(prompt(graph))
    assert {"before", "after"} <= record["outputs"].keys()


def test_a_run_gets_on_under_an_endless_queue_if_asked_to(server, base):
    graph = train(base, "endless", **LONG)
    graph["memory"] = node("LoomMemory", gradient_checkpointing=False, precision="auto", quantize="none", yield_max_s=0.2)  # fmt: skip
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    server.run(prompt(graph))
    server.wait_step("endless", 1)
    other = server.queue(hold("enough steps"))
    begun = server.wait_state("endless", "yielding")["step"]
    server.wait_step("endless", begun + 3)
    assert not server.history(other)  # it still runs
    server.release("enough steps")
    server.finish(other)
    stop(server, "endless")


def test_a_failed_run_reports_is_raised_by_wait_and_can_be_continued(server, base):
    blocked = server.base / "models" / "loras" / "lora_loom" / "fails"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where a folder has to go")
    graph = train(base, "fails", mode="background", steps=8, save_every=4)
    graph["wait"] = node("LoomWait", run=["train", 0])
    message = server.fail(prompt(graph))
    assert "fails" in message
    run = server.run_state("fails")
    assert run["state"] == "failed"
    assert run["error"]
    blocked.unlink()
    server.run(prompt(graph))
    assert server.run_state("fails")["state"] == "finished"


def test_a_diverged_run_keeps_its_last_checkpoint(server, base):
    graph = train(base, "diverges", learning_rate=10.0, steps=400, save_every=1)
    graph["memory"] = node("LoomMemory", gradient_checkpointing=False, precision="float16", quantize="none", yield_max_s=0.0)  # fmt: skip
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    assert "loss nan" in server.fail(prompt(graph))
    run = server.run_state("diverges")
    assert run["state"] == "failed"
    assert run["checkpoints"]


def test_another_configuration_of_the_same_name_is_refused_or_gets_a_new_name(server, base):
    server.run(prompt(train(base, "named", rank=4)))
    message = server.fail(prompt(train(base, "named", rank=2)))
    assert "rank in Loom Train LoRA: 4 -> 2" in message
    server.run(prompt(train(base, "named", rank=2, existing_run="new")))
    assert server.run_state("named-2")["state"] == "finished"


def test_more_steps_continue_a_finished_run(server, base):
    server.run(prompt(train(base, "longer", steps=4, save_every=2)))
    server.run(prompt(train(base, "longer", steps=8, save_every=4)))
    server.run(prompt(train(base, "at-once", steps=8, save_every=4)))
    assert checkpoint(server, "longer", 8) == checkpoint(server, "at-once", 8)


def test_a_run_on_disk_by_name(server, base):
    server.run(prompt(train(base, "on-disk")))
    graph = {"run": node("LoomRun", name="on-disk"), "wait": node("LoomWait", run=["run", 0])}
    server.run(graph)
    message = server.fail({"run": node("LoomRun", name="no-such"), "wait": node("LoomWait", run=["run", 0])})
    assert "there is no run 'no-such'" in message


def test_samples_let_a_prompt_have_the_machine_and_a_stop_ends_them(server, base):
    """Eight samples of 60 steps before step 1: without a hold a prompt would wait for none of them, and a stop for all."""
    graph = train(base, "many-samples", **LONG)
    graph["validation"] = node(
        "LoomValidation", vae=base["sources"]["vae"], clip=base["sources"]["clip"], every=1000, steps=60, width=128,
        height=128, prompts="\n".join(f"thing {i}" for i in range(8)),
    )  # fmt: skip
    graph["train"]["inputs"]["validation"] = ["validation", 0]
    server.run(prompt(graph))
    server.wait_state("many-samples", "running")
    other = server.queue(hold("samples may go on"))
    held = server.wait_state("many-samples", "yielding")
    assert held["step"] == 0
    server.release("samples may go on")
    server.finish(other)
    begun = time.monotonic()
    assert stop(server, "many-samples")["step"] == 0
    assert time.monotonic() - begun < 10
