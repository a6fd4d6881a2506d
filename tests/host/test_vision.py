"""A CLIP_VISION that a run computes with gives what ComfyUI's own thread would get of it."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui


def test_a_runs_shadow_of_an_image_encoder_is_comfyuis():
    found = run_inside("vision")
    assert {"clip_vision_model", "siglip_vision_model", "dinov2"} <= found.keys()
    assert max(found.values()) < 1e-5
