"""One copy of the base while training, whatever is queued beside: live storages of a real server, counted at step boundaries."""

import time

import pytest

from .graphs import data, node, picture, prompt, train, trivial

pytestmark = pytest.mark.comfyui
LONG = {"steps": 100_000, "save_every": 1000, "mode": "background"}
SLACK = 1.05


def count(server):
    return server.http.get("/loom_test/bytes").json()["bytes"]


def step_later(server, name):
    """Live bytes when the run has taken a step after the last prompt."""
    server.wait_step(name, server.run_state(name)["step"] + 2)
    server.act(name, "pause")  # no activations are counted
    server.wait_state(name, "paused")
    found = count(server)
    server.act(name, "resume")
    server.wait_state(name, "running")
    return found


def lora(server, name, step):
    return (server.base / "output" / "lora_loom" / name / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors").read_bytes()  # fmt: skip


def with_lora(base, name, strength):
    patched = node("LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=name, strength_model=strength)
    return picture({**base, "patched": patched}, model=["patched", 0], key="patched-picture")


@pytest.fixture(scope="module")
def training(server, bases):
    """A long run on the SD1.5 toy, and the most bytes that live while it trains alone or ComfyUI draws alone: with one copy of the
    model, and in the second case with the text encoder and VAE that belong to the picture's prompt."""
    base = data(bases["sd1"])
    server.run(prompt(train(bases["sd1"] | base, "first", steps=2, save_every=2)))  # a LoRA to disturb with
    server.http.post("/free", json={"unload_models": True, "free_memory": True})
    server.run(trivial(10))
    server.run(prompt(picture(base, seed=2)))
    drawing = count(server)
    server.http.post("/free", json={"unload_models": True, "free_memory": True})
    server.run(prompt(train(base, "copies", **LONG)))
    server.wait_step("copies", 3)
    yield base, max(drawing, step_later(server, "copies"))
    server.act("copies", "stop")
    server.wait_state("copies", "stopped", "finished", "failed")


def test_a_sampler_with_its_own_loader_after_a_trivial_prompt(server, training):
    base, alone = training
    server.run(trivial(11))
    server.run(prompt(picture(base, seed=3)))
    assert step_later(server, "copies") <= SLACK * alone
    log = (server.base / "output" / "lora_loom" / "copies" / "log.txt").read_text()
    assert "training shares that copy now" in log  # there was a second one


def test_the_training_graph_queued_again(server, training):
    base, alone = training
    server.run(trivial(12))
    server.run(prompt(train(base, "copies", **LONG)))
    assert step_later(server, "copies") <= SLACK * alone


def test_free_and_then_a_sampler(server, training):
    base, alone = training
    server.http.post("/free", json={"unload_models": True, "free_memory": True})
    time.sleep(0.2)
    assert step_later(server, "copies") <= SLACK * alone
    server.run(prompt(picture(base, seed=4)))
    assert step_later(server, "copies") <= SLACK * alone


def test_a_lora_at_strength_5_then_a_prompt_without_it(server, training):
    base, alone = training
    server.run(trivial(13))
    server.run(prompt(with_lora(base, "lora_loom/first/first.safetensors", 5.0)))
    step_later(server, "copies")  # the host's own patched weights are beside the originals now
    server.run(prompt(picture(base, seed=5)))
    assert step_later(server, "copies") <= SLACK * alone


def test_the_model_of_the_run_loads_nothing(server, training):
    base, alone = training
    server.run(trivial(14))
    before = (server.base / "server.log").read_text().count("loaded completely")
    graph = picture({**base, "run": node("LoomRun", name="copies")}, model=["run", 1], key="of-run", seed=6)
    del graph["model"]
    for unused in ("dataset", "cache"):
        del graph[unused]
    record = server.run(prompt(graph))
    assert record["outputs"]["of-run"]["images"]
    assert count(server) <= SLACK * alone
    assert (server.base / "server.log").read_text().count("loaded completely") <= before + 1


def test_a_run_that_does_not_train_says_that_it_has_no_model(server, bases, training):
    base, _ = training
    graph = picture({**base, "run": node("LoomRun", name="first")}, model=["run", 1], key="of-past")
    assert "run first does not train now" in server.fail(prompt(graph))
    server.run(prompt({"run": node("LoomRun", name="first"), "wait": node("LoomWait", run=["run", 0])}))


def test_a_disturbed_run_is_bit_equal_to_an_undisturbed_one(server, bases, training):
    server.act("copies", "stop")
    server.wait_state("copies", "stopped")
    base, options = training[0], {"steps": 60, "save_every": 60, "ema": 0.9}
    server.run(prompt(train(base, "undisturbed", **options)))
    server.run(prompt(train(base, "disturbed", mode="background", **options)))
    for round_ in range(3):
        server.run(trivial(20 + round_))
        server.run(prompt(with_lora(base, "lora_loom/first/first.safetensors", 5.0)))
        server.wait_step("disturbed", server.run_state("disturbed")["step"] + 1)
        server.run(prompt(picture(base, seed=30 + round_)))
        server.wait_step("disturbed", server.run_state("disturbed")["step"] + 1)
    server.wait_state("disturbed", "finished")
    assert lora(server, "disturbed", 60) == lora(server, "undisturbed", 60)
    log = (server.base / "output" / "lora_loom" / "disturbed" / "log.txt").read_text()
    assert log.count("training shares") >= 3


def test_a_streamed_base_trains_the_same_lora_on_comfyuis_own_weights(server, bases):
    base, options = data(bases["sd1"]), {"steps": 4, "save_every": 4, "accumulation": 2}

    def run(name, **memory):
        graph = train(base, name, **options)
        graph["memory"] = node(
            "LoomMemory", gradient_checkpointing=True, precision="auto", quantize="none", yield_max_s=0.0, **memory
        )
        graph["train"]["inputs"]["memory"] = ["memory", 0]
        return prompt(graph)

    server.run(run("on-device"))
    server.run(run("streamed", base="stream"))
    assert lora(server, "streamed", 4) == lora(server, "on-device", 4)
    log = (server.base / "output" / "lora_loom" / "streamed" / "log.txt").read_text()
    assert "streamed base: " in log
    assert "give 0." in server.fail(run("too-small", base="stream", vram_gb=0.000001))
