"""LoomDemoModel: the host's own sampler, VAE and LoRA loader on the demo base give what the engine gives."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run_inside("demo_model", tmp_path_factory.mktemp("demo"))


def test_the_stock_loader_recognises_it(found):
    assert found["class"] == "SD3"


@pytest.mark.parametrize(
    ("what", "most"), [("text", 1e-5), ("pooled", 1e-5), ("latents", 1e-3), ("pixels", 1e-3), ("raw", 1e-3)]
)
def test_the_host_agrees_with_the_engine(found, what, most):
    assert found["errors"][what] < most


def test_a_lora_reaches_both_and_leaves_the_text_encoder_as_it_was(found):
    assert found["effects"]["lora_text"] > 1e-3
    assert found["effects"]["lora_latents"] > 1e-3
    assert found["effects"]["text_back"] == 0
