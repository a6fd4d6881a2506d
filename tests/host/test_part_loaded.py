"""A MODEL that ComfyUI holds only in part trains as one that it holds whole, and prompts that need no model cost nothing."""

import re

import pytest

from .graphs import data, node, prompt, train, trivial

pytestmark = pytest.mark.comfyui
OPTIONS = {"steps": 4, "save_every": 4, "accumulation": 2}


def streamed(base, name, **options):
    graph = train(base, name, **options)
    graph["memory"] = node(
        "LoomMemory", gradient_checkpointing=True, precision="auto", quantize="none", yield_max_s=0.0, base="stream"
    )
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    return graph


def adapter(server, name, step=4):
    return (server.base / "output" / "lora_loom" / name / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors").read_bytes()  # fmt: skip


def log_of(server, name):
    return (server.base / "output" / "lora_loom" / name / "log.txt").read_text()


@pytest.mark.parametrize("family", ["sd1", "sd3", "flux"])
def test_a_model_in_part_on_its_device_trains_the_lora_of_a_whole_one(server, bases, family):
    base = data(bases[family])
    server.run(prompt(streamed(base, f"whole-{family}", **OPTIONS)))
    graph = streamed(base, f"part-{family}", **OPTIONS)
    graph["part"] = node("LoomTestPartLoaded", model=base["sources"]["model"])
    graph["train"]["inputs"]["model"] = ["part", 0]
    server.run(prompt(graph))
    assert adapter(server, f"part-{family}") == adapter(server, f"whole-{family}")


def test_twenty_prompts_without_a_model_reload_nothing(server, bases):
    """Neither ComfyUI loads a model nor does the run lay its weights over another copy."""
    name = "undisturbed-by-trivial"
    server.run(prompt(streamed(data(bases["sd1"]), name, steps=100_000, save_every=1000, mode="background")))
    server.wait_step(name, 2)
    server.run(trivial(900))  # ComfyUI drops what its last prompt has cached
    server.wait_step(name, server.run_state(name)["step"] + 2)
    before = loads(server), log_of(server, name).count("training shares")
    for salt in range(20):
        server.run(trivial(901 + salt))
    server.wait_step(name, server.run_state(name)["step"] + 2)
    assert (loads(server), log_of(server, name).count("training shares")) == before
    server.act(name, "stop")
    server.wait_state(name, "stopped", "finished", "failed")


def loads(server):
    """How often ComfyUI has loaded a model, by its own log."""
    return len(
        re.findall(r"Requested to load|loaded (?:completely|partially)", (server.base / "server.log").read_text())
    )
