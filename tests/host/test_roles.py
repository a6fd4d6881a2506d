"""What tests/fixtures/host/models.json records of ComfyUI's classes is what this ComfyUI has: each at its published size, without weights."""

import json
import os
import subprocess

import pytest

from scripts.image_models import CLASSES, LEFT_OUT
from scripts.write_model_docs import RECORD

from .conftest import need_comfyui
from .server import COMFYUI, PYTHON, ROOT

pytestmark = pytest.mark.comfyui
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
HINT = "python -m scripts.record_host_models tests/fixtures/host/models.json, then python -m scripts.write_model_docs"


@pytest.fixture(scope="module")
def found():
    need_comfyui()
    done = subprocess.run(
        [PYTHON, "-m", "scripts.record_host_models", "-"], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "COMFYUI_PATH": str(COMFYUI), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_class_of_this_version_is_described_or_left_out(found):
    unknown = set(found["listed"]) - CLASSES.keys() - LEFT_OUT.keys()
    assert not unknown, "describe them in scripts/image_models.py, or leave them out there with a reason"


@pytest.mark.parametrize("name", CLASSES)
def test_layers_of_comfyuis_networks(found, name):
    if name not in found["classes"]:
        pytest.skip("this version of ComfyUI does not have it")
    if found["comfyui"] != RECORDED["comfyui"]:
        pytest.skip(f"recorded from {RECORDED['comfyui']}")
    assert found["classes"][name] == RECORDED["classes"][name], HINT
