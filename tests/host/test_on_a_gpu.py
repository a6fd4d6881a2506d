"""A ComfyUI on a GPU, however it loads models: the same LoRA up to rounding, an unchanged base, prompts that get their memory."""

import json
import re

import pytest

from .conftest import new_server
from .graphs import base_hash, data, file, node, prompt, train

pytestmark = [pytest.mark.comfyui, pytest.mark.gpu]
LOADINGS = {
    "dynamic": (),
    "estimates": ("--disable-dynamic-vram",),
    "part": ("--disable-dynamic-vram", "--novram"),
    "kept": ("--highvram",),
}
STEPS = {"steps": 4, "save_every": 4}


@pytest.fixture(scope="module", params=LOADINGS)
def gpu_server(request, tmp_path_factory, checkpoints):
    running = new_server(tmp_path_factory, checkpoints, *LOADINGS[request.param], device=()).start()
    yield running
    running.stop()


def run(server, name, base="auto", **options):
    graph = train(data(file("sd1")), name, **{**STEPS, **options})
    graph["memory"] = node("LoomMemory", gradient_checkpointing=True, precision="auto", quantize="none", yield_max_s=0.0, base=base)  # fmt: skip
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    server.run(prompt(graph))
    return server.base / "output" / "lora_loom" / name


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def hashed(server, salt):
    return server.run(prompt(base_hash(file("sd1"), salt)))


def test_resident_and_streamed_train_alike_and_leave_the_base_alone(gpu_server):
    before = hashed(gpu_server, 1)
    resident, streamed = run(gpu_server, "resident"), run(gpu_server, "streamed", base="stream")
    assert losses(streamed) == pytest.approx(losses(resident), rel=1e-3)
    assert re.search(
        r"streamed base: \d+ of \d+ blocks pass through a ring on cuda", (streamed / "log.txt").read_text()
    )
    assert hashed(gpu_server, 2)["outputs"] == before["outputs"]


def test_memory_that_a_prompt_needs_is_given_and_taken_again(gpu_server):
    folder = run(gpu_server, "asked", base="stream", steps=100_000, save_every=1000, mode="background")
    gpu_server.wait_step("asked", 3)
    gpu_server.http.post("/free", json={"unload_models": True, "free_memory": True}).raise_for_status()
    gpu_server.wait_step("asked", gpu_server.run_state("asked")["step"] + 20)
    gpu_server.act("asked", "stop")
    gpu_server.wait_state("asked", "stopped", "finished", "failed")
    log = (folder / "log.txt").read_text()
    assert "ComfyUI needs memory: " in log
    assert "the base is on the device again: " in log
