"""The dtype of a run in a real ComfyUI on a CPU: tried where the processor computes bfloat16, and kept when the run is continued."""

import json
import subprocess

import pytest

from .conftest import new_server
from .graphs import data, node, prompt, train
from .server import PYTHON

pytestmark = pytest.mark.comfyui
HAS_BOTH = "import torch; print(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())"


@pytest.fixture(scope="module")
def server(tmp_path_factory, checkpoints):
    """A server that tries dtypes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_LOOM_TRIAL", "1")
        running = new_server(tmp_path_factory, checkpoints).start()
    yield running
    running.stop()


def run(server, base, name, steps, precision="auto"):
    graph = train(data(base), name, steps=steps, save_every=2)
    graph["memory"] = node(
        "LoomMemory", gradient_checkpointing=True, precision=precision, quantize="none", yield_max_s=0.0
    )
    graph["train"]["inputs"]["memory"] = ["memory", 0]
    server.run(prompt(graph), timeout=900)
    folder = server.base / "output" / "lora_loom" / name
    return json.loads((folder / "run.json").read_text()), (folder / "log.txt").read_text()


def test_the_faster_dtype_is_taken_and_kept(server, bases):
    has_both = subprocess.run([PYTHON, "-c", HAS_BOTH], capture_output=True, text=True, check=True).stdout.strip()
    kept, log = run(server, bases["sd1"], "tried", 2)
    if has_both != "True":
        assert "arithmetic" not in kept
        return
    chosen = kept["arithmetic"]
    seconds = chosen["seconds"]
    assert chosen["dtype"] == ("bfloat16" if seconds["bfloat16"] < 0.95 * seconds["float32"] else "float32")
    assert f"arithmetic: {chosen['dtype']} (a micro-batch takes " in log
    again, log = run(server, bases["sd1"], "tried", 4)
    assert again["arithmetic"] == chosen
    assert log.count("arithmetic: ") == 1
    assert "continuing from step 2" in log


def test_a_precision_that_was_chosen_is_not_tried(server, bases):
    kept, log = run(server, bases["sd1"], "chosen", 2, "float32")
    assert "arithmetic" not in kept
    assert "arithmetic: " not in log
