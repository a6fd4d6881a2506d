"""Every class of ComfyUI that makes images trains: a small network of each, three steps as a run in the graph takes them."""

import json

import pytest

from scripts.image_models import CLASSES
from scripts.image_toys import SMALLER
from scripts.write_model_docs import TRAINED

from .programs import recorded_now

RECORDED = json.loads(TRAINED.read_text(encoding="utf-8"))["classes"]
HINT = (
    "python -m scripts.record_host_training tests/fixtures/host/training.json, then python -m scripts.write_model_docs"
)


@pytest.fixture(scope="module")
def found():
    return recorded_now("record_host_training")["classes"]


def test_every_class_has_a_small_network_and_a_record():
    assert SMALLER.keys() == CLASSES.keys() == RECORDED.keys()


@pytest.mark.comfyui
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_trains(found, name):
    if name not in found:
        pytest.skip("this version of ComfyUI does not have it")
    one = found[name]
    assert "problem" not in one, one["problem"]
    assert one["base_unchanged"]
    assert one["modules"] == RECORDED[name]["modules"], HINT
    assert one["silent"] == [], "default targets without a gradient"
    assert one["unmatched"] == []
    assert one["file"] < 1e-6
    assert one["predicts"] < 1e-5, "the network without a LoRA computes something else than ComfyUI's"
    assert one["moved"] > 1e-3
    assert one["as_trained"] < 1e-3
