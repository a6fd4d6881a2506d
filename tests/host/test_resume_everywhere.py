"""Resume is exact in ComfyUI, across a restart of the server, for every kind of model that there is a toy of."""

import json
import shutil

import pytest

from .conftest import new_server
from .graphs import data, prompt, toy, train

pytestmark = pytest.mark.comfyui
TOYS = (
    "sd1", "sd2", "sdxl", "sd3", "flux-dev", "flux-schnell", "flux2-klein", "flux2-dev", "chroma", "lumina2", "z-image", "krea2", "qwen",
    "aura", "wan",
)  # fmt: skip
OPTIONS = {"steps": 6, "save_every": 3, "ema": 0.9, "accumulation": 2, "keep": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoints):
    """{toy: (adapter of step 6 in one go, the one of a server that was started again with what a kill after step 3 leaves)}."""
    server = new_server(tmp_path_factory, checkpoints).start()
    folder = server.base / "output" / "lora_loom"
    try:
        whole = {}
        for name in TOYS:
            server.run(prompt(train(data(toy(name)), name, **OPTIONS)))
            whole[name] = adapter(folder / name, 6)
            as_killed_after_step_3(folder / name)
        server.kill()
        server.start()
        for name in TOYS:
            assert server.run_state(name)["state"] == "interrupted"
            assert not (folder / name / "checkpoints" / "step-000006").exists()
            server.run(prompt(train(data(toy(name)), name, **OPTIONS)))
        return {name: (whole[name], adapter(folder / name, 6)) for name in TOYS}
    finally:
        server.stop()


def adapter(run, step):
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def as_killed_after_step_3(run):
    """What a run's folder holds when the process is killed between the saves of step 3 and 6."""
    shutil.rmtree(run / "checkpoints" / "step-000006")
    for path in [*run.glob("loras/*000006*"), run / "loras" / f"{run.name}.safetensors"]:
        path.unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "state": "running", "step": 3}))


@pytest.mark.parametrize("name", TOYS)
def test_a_run_of_every_model_goes_on_after_a_restart_bit_for_bit(runs, name):
    whole, resumed = runs[name]
    assert whole, "there is something to compare"
    assert resumed == whole
