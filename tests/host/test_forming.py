"""The rough picture of a sample that forms is the one that ComfyUI's own sampler nodes show."""

import pytest

from .programs import run_inside

pytestmark = pytest.mark.comfyui


def test_colours_are_comfyuis():
    found = run_inside("colours")
    assert {"SD15", "SDXL", "SD3", "Flux", "Flux2", "Wan21"} <= found.keys()
    assert max(found.values()) < 1, "of 255: ComfyUI cuts off what we round"
