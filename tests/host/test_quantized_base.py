"""A base in nf4 in a real ComfyUI: trained on, streamed too, and its LoRA loaded by ComfyUI's own node over the whole base."""

import json
import subprocess

import pytest

from .graphs import data, node, picture, prompt, train
from .server import PYTHON

pytestmark = pytest.mark.comfyui
OPTIONS = {"steps": 4, "save_every": 4, "accumulation": 2}


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes():
    if subprocess.run([PYTHON, "-c", "import bitsandbytes"], capture_output=True, check=False).returncode:
        pytest.skip("ComfyUI's Python has no bitsandbytes")


def graph_of(loaders, name, **memory):
    options = {"gradient_checkpointing": True, "precision": "auto", "quantize": "nf4", "yield_max_s": 0.0, **memory}
    graph = train(loaders, name, **OPTIONS)
    graph["memory"] = node("LoomMemory", **options)
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    return graph


def folder(server, name):
    return server.base / "output" / "lora_loom" / name


def adapter(server, name):
    return (folder(server, name) / "checkpoints" / "step-000004" / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_base_in_nf4_trains_streamed_or_not_and_comfyui_loads_the_lora(server, bases, family):
    base = data(bases[family])
    graph = graph_of(base, f"nf4-{family}")
    graph["patched"] = node(
        "LoraLoaderModelOnly", model=base["sources"]["model"], lora_name=["train", 1], strength_model=1.0
    )
    server.run(prompt(picture(graph, model=["patched", 0], key=f"with-{family}")))
    log = (folder(server, f"nf4-{family}") / "log.txt").read_text()
    assert "quantized to nf4: an extra copy of " in log
    assert "0 keys unmatched" in log
    losses = [json.loads(line) for line in (folder(server, f"nf4-{family}") / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 for line in losses if "grad_norm" in line)
    assert "lora key not loaded" not in (server.base / "server.log").read_text()
    server.run(prompt(graph_of(base, f"nf4-streamed-{family}", base="stream")))
    assert "pass through a ring" in (folder(server, f"nf4-streamed-{family}") / "log.txt").read_text()
    assert adapter(server, f"nf4-streamed-{family}") == adapter(server, f"nf4-{family}")
    server.run(prompt(graph_of(base, f"whole-{family}", quantize="none")))
    assert adapter(server, f"whole-{family}") != adapter(server, f"nf4-{family}")
