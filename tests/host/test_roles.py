"""What tests/fixtures/host/models.json records of ComfyUI's classes is what this ComfyUI has: each at its published size, without weights."""

import json

import pytest

from scripts.image_models import CLASSES, LEFT_OUT
from scripts.write_model_docs import RECORD

from .programs import recorded_now

pytestmark = pytest.mark.comfyui
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
HINT = "python -m scripts.record_host_models tests/fixtures/host/models.json, then python -m scripts.write_model_docs"


@pytest.fixture(scope="module")
def found():
    return recorded_now("record_host_models")


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
